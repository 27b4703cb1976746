// What our own drivers say.
#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "formats/builtin.h"
#include "tests/damaged/verdict.h"
#include "tests/damaged/verdict_text.h"
#include "tools/image_report.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kSector = kSectorSizeBytes;

// Of names in an image it makes what QEMU does.
ImageOpener opener() {
  ImageOpener::Policy policy;
  policy.probe_backing = true;
  policy.image_name_syntax = NameSyntax::kQemu;
  return {builtin_drivers(), policy};
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open(const std::string& path,
                                                  const OpenOptions& options) {
  return opener().open(path, "qcow2", options);
}

bool read_sectors(BlockDriver& driver, uint64_t first, uint64_t count,
                  Bytes* bytes) {
  const IoVector qiov(bytes->data() + first * kSector, count * kSector);
  if (driver.read(qiov, Sector(first)).ok()) return true;
  std::fill_n(bytes->begin() + static_cast<ptrdiff_t>(first * kSector),
              count * kSector, uint8_t{0});
  return false;
}

absl::Status change_disk(BlockDriver& driver, const Change& change) {
  if (change.offset + change.length > driver.length_bytes())
    return absl::OutOfRangeError("beyond the end");
  const ByteRange range{change.offset, change.length};
  switch (change.kind) {
    case Change::Kind::kZero: {
      const absl::Status status = driver.write_zeroes(range, {});
      if (!absl::IsUnimplemented(status)) return status;
      Bytes bytes(change.length);
      return driver.write(IoVector(bytes.data(), bytes.size()),
                          Sector(change.offset / kSector));
    }
    case Change::Kind::kDiscard:
      return driver.discard(range);
    default: {
      Bytes bytes(change.length, 119);
      return driver.write(IoVector(bytes.data(), bytes.size()),
                          Sector(change.offset / kSector));
    }
  }
}

}  // namespace

std::string Spindle::info(const std::string& path) {
  const absl::StatusOr<ImageReport> report =
      make_report(opener(), {.name = path, .format = "qcow2"},
                  /*force_share=*/false);
  if (report.ok()) return info_text(to_json(*report));
  reason = report.status().ToString();
  return kRefused;
}

Contents Spindle::read(const std::string& path) {
  Contents contents;
  OpenOptions options;
  options.read_only = true;
  const auto driver = open(path, options);
  if (!driver.ok()) {
    contents.message = driver.status().ToString();
    return contents;
  }
  contents.opened = true;
  const uint64_t sectors = (*driver)->length_bytes() <= kMaxContents
                               ? (*driver)->length_bytes() / kSector
                               : 0;
  contents.bytes.resize(sectors * kSector);
  constexpr uint64_t kPiece = 128;
  for (uint64_t first = 0; first < sectors; first += kPiece) {
    const uint64_t count = std::min(kPiece, sectors - first);
    if (read_sectors(**driver, first, count, &contents.bytes)) continue;
    for (uint64_t i = first; i < first + count; ++i) {
      if (!read_sectors(**driver, i, 1, &contents.bytes))
        contents.bad_sectors.push_back(i);
    }
  }
  const absl::Status closed = (*driver)->close();
  if (!closed.ok()) contents.message = closed.ToString();
  return contents;
}

std::string Spindle::map(const std::string& path) {
  OpenOptions options;
  options.read_only = true;
  const auto driver = open(path, options);
  if (!driver.ok()) {
    reason = driver.status().ToString();
    return kRefused;
  }
  std::vector<MapEntry> entries;
  std::string failed;
  const uint64_t end = (*driver)->length_bytes() / kSector * kSector;
  for (uint64_t at = 0; at < end && failed.empty();) {
    const absl::StatusOr<BlockStatus> status =
        (*driver)->block_status({at, end - at}, BlockStatusScope::kWholeChain);
    if (!status.ok()) {
      reason = status.status().ToString();
      failed = "failed";
      break;
    }
    MapEntry entry;
    entry.start = at;
    entry.length = status->length;
    entry.depth = status->depth;
    entry.zero = status->zero;
    entry.data = status->data;
    entry.offset = status->host_offset;
    entries.push_back(entry);
    at += status->length;
  }
  (*driver)->close().IgnoreError();
  return failed.empty() ? map_text(entries) : failed;
}

std::string Spindle::write(const std::string& path, uint64_t cluster_bytes) {
  OpenOptions options;
  // Clusters where QEMU places them.
  options.driver_options["reuse"] = "lowest";
  const auto driver = open(path, options);
  found_damage = absl::IsDataLoss(driver.status());
  if (!driver.ok()) {
    reason = driver.status().ToString();
    return kRefused;
  }
  std::vector<std::string> outcomes;
  reason.clear();
  for (const Change& change : changes(cluster_bytes)) {
    const absl::Status status = change_disk(**driver, change);
    outcomes.push_back(status.ok() ? "ok" : "failed");
    if (status.ok()) continue;
    found_damage |= absl::IsDataLoss(status);
    absl::StrAppend(&reason, status.ToString(), "; ");
  }
  absl::StrAppend(&reason, (*driver)->close().ToString());
  return absl::StrJoin(outcomes, " ");
}

CheckReport Spindle::check(const std::string& path, const std::string& repair) {
  CheckReport report;
  OpenOptions open_options;
  open_options.for_check = true;
  open_options.read_only = repair.empty();
  const auto driver = open(path, open_options);
  if (!driver.ok()) {
    report.failed = true;
    report.lines.push_back(driver.status().ToString());
    report.exit_code = exit_code_for(report);
    return report;
  }
  CheckOptions options;
  options.fix_leaks = !repair.empty();
  options.fix_errors = repair == "all";
  options.report = [&report](absl::string_view lines) {
    for (absl::string_view line : absl::StrSplit(lines, '\n'))
      report.lines.push_back(std::string(line));
  };
  absl::StatusOr<CheckResult> result = (*driver)->check(options);
  if (result.ok() &&
      (result->corruptions_fixed != 0 || result->leaks_fixed != 0)) {
    const CheckResult first = *result;
    options.fix_leaks = options.fix_errors = false;
    result = (*driver)->check(options);
    if (result.ok()) {
      result->corruptions_fixed = first.corruptions_fixed;
      result->leaks_fixed = first.leaks_fixed;
    }
  }
  (*driver)->close().IgnoreError();
  report.failed = !result.ok();
  if (result.ok()) {
    report.result = *result;
  } else {
    report.lines.push_back(result.status().ToString());
  }
  report.exit_code = exit_code_for(report);
  return report;
}

}  // namespace spindle::testing

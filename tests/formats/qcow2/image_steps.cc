#include "tests/formats/qcow2/image_steps.h"

#include <unistd.h>

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

constexpr const char* kPreallocations[] = {"off", "metadata", "falloc", "full"};

const char* name_of(Preallocation preallocation) {
  return kPreallocations[static_cast<int>(preallocation)];
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const std::string& path, bool read_only = false) {
  const ImageOpener opener(builtin_drivers(), {});
  OpenOptions options;
  options.read_only = read_only;
  if (!read_only) options.driver_options = {{"reuse", "lowest"}};
  return opener.open(path, "qcow2", options);
}

absl::Status write_fill(BlockDriver& driver, const Step& step) {
  std::vector<uint8_t> bytes(step.length, step.fill);
  return driver.write(IoVector(bytes.data(), bytes.size()),
                      Sector::from_byte_offset(step.offset));
}

absl::Status step_on(BlockDriver& driver, const Step& step) {
  const ByteRange range{step.offset, step.length};
  switch (step.kind) {
    case Step::Kind::kWrite:
      return write_fill(driver, step);
    case Step::Kind::kZero: {
      const absl::Status status = driver.write_zeroes(range, {});
      return absl::IsUnimplemented(status) ? write_fill(driver, step) : status;
    }
    case Step::Kind::kDiscard:
      return driver.discard(range);
    case Step::Kind::kCreate: {
      SnapshotInfo wanted;
      wanted.name = step.snapshot;
      wanted.date_seconds = 1;
      return driver.create_snapshot(wanted).status();
    }
    case Step::Kind::kApply:
      return driver.apply_snapshot(step.snapshot);
    case Step::Kind::kDelete:
      return driver.delete_snapshot(step.snapshot);
    case Step::Kind::kResize:
      return driver.resize(step.length, step.preallocation);
  }
  return absl::InternalError("no such step");
}

}  // namespace

std::string Step::text() const {
  static constexpr const char* kNames[] = {
      "write", "zero", "discard", "create", "apply", "delete", "resize"};
  return absl::StrCat(kNames[static_cast<int>(kind)], " ", snapshot, " ",
                      offset, " ", length, " ", fill, " ",
                      name_of(preallocation));
}

absl::Status step_by_us(const std::string& path, const Step& step) {
  auto opened = open_image(path);
  if (!opened.ok()) return opened.status();
  const absl::Status status = step_on(**opened, step);
  const absl::Status closed = (*opened)->close();
  return status.ok() ? closed : status;
}

absl::Status step_by_qemu(const std::string& path, const Step& step) {
  const ImageFile image{path, "qcow2"};
  const std::string range = absl::StrCat(step.offset, " ", step.length);
  const auto snapshot = [&](const char* option) {
    return run_tool_ok({"qemu-img", "snapshot", option, step.snapshot, path})
        .status();
  };
  switch (step.kind) {
    case Step::Kind::kWrite:
      return qemu_io(image, {absl::StrCat("write -P ", step.fill, " ", range)});
    case Step::Kind::kZero:
      return qemu_io(image, {absl::StrCat("write -z ", range)});
    case Step::Kind::kDiscard:
      return qemu_io(image, {absl::StrCat("discard ", range)});
    case Step::Kind::kCreate:
      return snapshot("-c");
    case Step::Kind::kApply:
      return snapshot("-a");
    case Step::Kind::kDelete:
      return snapshot("-d");
    case Step::Kind::kResize:
      // qemu-img refuses to make a disk of no length, qemu-io does it.
      return qemu_io(
          image, {absl::StrCat("truncate -m ", name_of(step.preallocation), " ",
                               step.length)});
  }
  return absl::InternalError("no such step");
}

std::string listed_by_qemu(const std::string& path) {
  const auto info = run_tool_ok(
      {"sh", "-c",
       absl::StrCat("qemu-img snapshot -l ", path,
                    " | tail -n +3 | awk '{print $1, $2}' | paste -sd,")});
  return info.ok() ? *info : info.status().ToString();
}

std::string listed_by_us(const std::string& path) {
  auto opened = open_image(path, /*read_only=*/true);
  if (!opened.ok()) return opened.status().ToString();
  const auto list = (*opened)->list_snapshots();
  if (!list.ok()) return list.status().ToString();
  return absl::StrCat(
      absl::StrJoin(*list, ",",
                    [](std::string* out, const SnapshotInfo& info) {
                      absl::StrAppend(out, info.id, " ", info.name);
                    }),
      "\n");
}

std::string content_by_qemu(const std::string& path,
                            const std::string& snapshot) {
  const std::string raw = tmpfs_path("content");
  std::vector<std::string> command = {"qemu-img", "convert", "-O", "raw"};
  if (!snapshot.empty()) {
    command.insert(command.end(),
                   {"-l", absl::StrCat("snapshot.name=", snapshot)});
  }
  command.insert(command.end(), {path, raw});
  const auto converted = run_tool_ok(command);
  if (!converted.ok()) return converted.status().ToString();
  const auto bytes = read_file(raw);
  ::unlink(raw.c_str());
  return std::string(bytes->begin(), bytes->end());
}

}  // namespace spindle::testing

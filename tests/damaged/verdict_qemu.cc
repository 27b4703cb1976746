// What qemu-img and qemu-io say.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/damaged/verdict.h"
#include "tests/damaged/verdict_text.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

// The last number of "...: error while reading offset 512: Input/output error".
std::optional<uint64_t> bad_offset(absl::string_view line) {
  constexpr absl::string_view kWords = "error while reading offset ";
  const size_t at = line.find(kWords);
  if (at == absl::string_view::npos) return std::nullopt;
  line.remove_prefix(at + kWords.size());
  uint64_t offset = 0;
  if (!absl::SimpleAtoi(line.substr(0, line.find(':')), &offset))
    return std::nullopt;
  return offset;
}

std::vector<std::string> bounded(std::vector<std::string> command) {
  command.insert(command.begin(), {"timeout", absl::StrCat(kToolSeconds)});
  return command;
}

}  // namespace

std::string Qemu::info(const std::string& path) {
  const auto run = run_tool_apart(
      bounded({"qemu-img", "info", "-f", "qcow2", "--output=json", path}));
  if (!run.ok() || run->exit_code != 0) {
    reason = run.ok() ? run->errors : run.status().ToString();
    return run.ok() && run->exit_code == kToolTimedOut ? kEndless : kRefused;
  }
  return info_text(nlohmann::ordered_json::parse(run->output, nullptr, false));
}

Contents Qemu::read(const std::string& path) {
  Contents contents;
  const std::string raw = tmpfs_path("contents");
  const auto run = run_tool(bounded({"qemu-img", "convert", "--salvage", "-f",
                                     "qcow2", "-O", "raw", path, raw}));
  if (!run.ok() || run->exit_code != 0) {
    contents.message = run.ok() ? run->output : run.status().ToString();
    contents.endless = run.ok() && run->exit_code == kToolTimedOut;
    ::unlink(raw.c_str());
    return contents;
  }
  contents.opened = true;
  contents.message = run->output.substr(0, 1000);
  for (absl::string_view line : absl::StrSplit(run->output, '\n')) {
    if (const std::optional<uint64_t> offset = bad_offset(line))
      contents.bad_sectors.push_back(*offset / 512);
  }
  contents.gave_up = absl::StrContains(run->output, "No medium found");
  std::error_code error;
  if (std::filesystem::file_size(raw, error) <= kMaxContents) {
    auto bytes = read_file(raw);
    if (bytes.ok()) contents.bytes = *std::move(bytes);
  }
  ::unlink(raw.c_str());
  return contents;
}

std::string Qemu::map(const std::string& path) {
  const auto run = run_tool_apart(
      bounded({"qemu-img", "map", "-f", "qcow2", "--output=json", path}));
  if (!run.ok() || run->exit_code != 0) {
    reason = run.ok() ? run->errors : run.status().ToString();
    if (run.ok() && run->exit_code == kToolTimedOut) return kEndless;
    return absl::StrContains(reason, "Could not open") ? kRefused : "failed";
  }
  const auto json = nlohmann::json::parse(run->output, nullptr, false);
  std::vector<MapEntry> entries;
  for (const auto& one : json) {
    MapEntry entry;
    entry.start = one["start"];
    entry.length = one["length"];
    entry.depth = one["depth"];
    entry.zero = one["zero"];
    entry.data = one["data"];
    if (one.contains("offset")) entry.offset = one["offset"].get<uint64_t>();
    entries.push_back(entry);
  }
  return map_text(entries);
}

std::string Qemu::write(const std::string& path, uint64_t cluster_bytes) {
  std::vector<std::string> command = {
      "qemu-io", "--image-opts",
      absl::StrCat("driver=qcow2,discard=unmap,file.driver=file,"
                   "file.discard=unmap,file.filename=",
                   path)};
  for (const Change& change : changes(cluster_bytes)) {
    command.push_back("-c");
    command.push_back(change.command);
  }
  const auto run = run_tool(bounded(command));
  if (!run.ok()) return run.status().ToString();
  if (run->exit_code == kToolTimedOut) return kEndless;
  if (run->exit_code >= 128) return kCrashed;
  std::vector<std::string> outcomes;
  for (absl::string_view line : absl::StrSplit(run->output, '\n')) {
    // A warning has no end of its line.
    absl::ConsumePrefix(&line, kLeakWarning);
    if (absl::StartsWith(line, "wrote ") || absl::StartsWith(line, "discard "))
      outcomes.push_back(absl::StrContains(line, " failed") ? "failed" : "ok");
    else if (absl::StrContains(line, "write failed"))
      outcomes.push_back("failed");
  }
  reason = run->output;
  return outcomes.empty() ? kRefused : absl::StrJoin(outcomes, " ");
}

CheckReport Qemu::check(const std::string& path, const std::string& repair) {
  return check_with_qemu(path, repair, kToolSeconds);
}

}  // namespace spindle::testing

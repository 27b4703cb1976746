#include "tests/support/qemu_bitmaps.h"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

using Json = nlohmann::json;

absl::StatusOr<Json> parse(const absl::StatusOr<std::string>& text) {
  if (!text.ok()) return text.status();
  Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InternalError(*text);
  return json;
}

}  // namespace

absl::StatusOr<std::string> qemu_bitmap_list(const std::string& path) {
  const absl::StatusOr<Json> info = parse(
      run_tool_ok({"qemu-img", "info", "-f", "qcow2", "--output=json", path}));
  if (!info.ok()) return info.status();
  std::string list;
  const Json& data = info->at("format-specific").at("data");
  if (!data.contains("bitmaps")) return list;
  for (const Json& bitmap : data.at("bitmaps")) {
    absl::StrAppend(&list, bitmap.at("name").get<std::string>(), " ",
                    bitmap.at("granularity").get<uint64_t>(), " ");
    for (const Json& flag : bitmap.at("flags"))
      absl::StrAppend(&list, flag.get<std::string>(), ",");
    absl::StrAppend(&list, "\n");
  }
  return list;
}

absl::StatusOr<std::vector<ByteRange>> qemu_dirty_ranges(
    const std::string& path, const std::string& name) {
  // The name of a socket must be short.
  const std::string socket = tmpfs_path("nbd");
  const std::string pid_file = tmpfs_path("pid");
  // Until the server is gone it holds the image's locks.
  const absl::StatusOr<std::string> text = run_tool_ok(
      {"sh", "-c",
       absl::StrCat(
           "qemu-nbd -r -f qcow2 -B ", name, " -k ", socket,
           " -t --fork --pid-file ", pid_file, " ", path,
           " || exit 1; nbdinfo --json --map=qemu:dirty-bitmap:", name,
           " 'nbd+unix:///?socket=", socket, "'; s=$?; p=$(cat ", pid_file,
           "); kill $p; while kill -0 $p 2>/dev/null; do sleep 0.005; done; "
           "exit $s")});
  ::unlink(socket.c_str());
  ::unlink(pid_file.c_str());
  const absl::StatusOr<Json> map = parse(text);
  if (!map.ok()) return map.status();
  std::vector<ByteRange> ranges;
  for (const Json& entry : *map) {
    if (entry.at("type").get<int>() == 0) continue;
    const ByteRange range{entry.at("offset").get<uint64_t>(),
                          entry.at("length").get<uint64_t>()};
    if (!ranges.empty() && ranges.back().end() == range.offset) {
      ranges.back().length += range.length;
    } else {
      ranges.push_back(range);
    }
  }
  return ranges;
}

}  // namespace spindle::testing

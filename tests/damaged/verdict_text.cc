#include "tests/damaged/verdict_text.h"

#include "absl/strings/str_cat.h"

namespace spindle::testing {

std::string info_text(nlohmann::ordered_json info) {
  for (const char* name : {"actual-size", "filename", "children"})
    info.erase(name);
  return info.dump(1, ' ', false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

std::string map_text(const std::vector<MapEntry>& entries) {
  std::string text;
  for (const MapEntry& entry : placement(entries)) {
    // Of an empty disk one of them lists nothing, at length.
    if (entry.length == 0) continue;
    absl::StrAppend(&text, to_string(entry), "\n");
  }
  return text;
}

std::vector<Change> changes(uint64_t cluster_bytes) {
  using Kind = Change::Kind;
  std::vector<Change> list;
  const auto add = [&](Kind kind, uint64_t first, uint64_t skip,
                       uint64_t length) {
    const char* verb = kind == Kind::kWrite  ? "write -P 119"
                       : kind == Kind::kZero ? "write -z"
                                             : "discard";
    const uint64_t offset = first * cluster_bytes + skip;
    list.push_back(
        {kind, offset, length, absl::StrCat(verb, " ", offset, " ", length)});
  };
  add(Kind::kWrite, 0, 0, cluster_bytes);
  add(Kind::kWrite, 1, 0, 512);                // shared with a snapshot
  add(Kind::kWrite, 4, 0, 512);                // compressed
  add(Kind::kWrite, 9, 0, 512);                // zero, with a place
  add(Kind::kWrite, 10, 0, 512);               // zero
  add(Kind::kWrite, 7, 0, 2 * cluster_bytes);  // nothing, and data
  add(Kind::kDiscard, 12, 0, cluster_bytes);
  add(Kind::kZero, 13, 0, cluster_bytes);
  return list;
}

}  // namespace spindle::testing

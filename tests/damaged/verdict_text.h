// The forms in which both implementations' verdicts are compared.  Private to
// verdict_*.cc.
#ifndef SPINDLE_TESTS_DAMAGED_VERDICT_TEXT_H_
#define SPINDLE_TESTS_DAMAGED_VERDICT_TEXT_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/qemu_tools.h"

namespace spindle::testing {

// The contents of a longer disk are not looked at: no base image is that long.
inline constexpr uint64_t kMaxContents = uint64_t{1} << 28;

// `info` without what depends on the file system.
std::string info_text(nlohmann::ordered_json info);
std::string map_text(const std::vector<MapEntry>& entries);

struct Change {
  enum class Kind { kWrite, kZero, kDiscard };
  Kind kind = Kind::kWrite;
  uint64_t offset = 0;
  uint64_t length = 0;
  std::string command;  // for qemu-io
};
// What write() does to a disk: over clusters of every kind that a base image
// has.
std::vector<Change> changes(uint64_t cluster_bytes);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_VERDICT_TEXT_H_

#include "formats/qcow/runtime_options.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/checked_math.h"
#include "engine/option_values.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {
namespace {

constexpr absl::string_view kCacheSize = "l2-cache-size";
constexpr absl::string_view kSliceSize = "l2-cache-entry-size";

constexpr uint64_t kMaxDefaultCacheBytes = uint64_t{32} << 20;
constexpr uint64_t kDefaultSliceBytes = 4096;
constexpr uint64_t kMinSliceBytes = 512;
// Enough for an operation's own slices in every shard.
constexpr uint64_t kMinCacheSlices = 16;

// What covers every L2 table.
uint64_t full_cache_bytes(const Header& header) {
  return divide_round_up(header.size_bytes, header.cluster_size_bytes()) *
         kL2EntryBytes;
}

}  // namespace

absl::StatusOr<RuntimeOptions> parse_runtime_options(const OptionMap& options,
                                                     const Header& header) {
  uint64_t cache = std::min(full_cache_bytes(header), kMaxDefaultCacheBytes);
  uint64_t slice = std::min(kDefaultSliceBytes, header.l2_table_bytes());
  for (const auto& [name, text] : options) {
    if (crypto::is_open_option(name)) continue;
    if (name != kCacheSize && name != kSliceSize) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown option ", name, " for qcow; known are ",
                       kCacheSize, " and ", kSliceSize));
    }
    const absl::StatusOr<uint64_t> value = parse_size_option(name, text);
    if (!value.ok()) return value.status();
    (name == kCacheSize ? cache : slice) = *value;
  }
  if (!is_power_of_two(slice) || slice < kMinSliceBytes ||
      slice > header.l2_table_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("option ", kSliceSize, "=", slice,
                     " is not a power of two from ", kMinSliceBytes,
                     " to the size of an L2 table, ", header.l2_table_bytes()));
  }
  RuntimeOptions result;
  result.slice_bytes = static_cast<uint32_t>(slice);
  result.l2_cache_bytes = std::max(cache, kMinCacheSlices * slice);
  return result;
}

}  // namespace spindle::qcow

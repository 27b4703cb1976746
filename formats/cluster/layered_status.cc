#include "formats/cluster/layered_status.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "engine/checked_math.h"

namespace spindle {
namespace {

constexpr int kMaxLooks = 64;

// True if the bytes behind those of `first` may be said to be of one run with
// them.
bool goes_on(const BlockStatus& first, const BlockStatus& next) {
  const auto expected =
      first.host_offset.has_value()
          ? std::optional<uint64_t>(*first.host_offset + first.length)
          : std::nullopt;
  return first.allocated == next.allocated && first.data == next.data &&
         first.zero == next.zero && first.compressed == next.compressed &&
         next.host_offset == expected;
}

}  // namespace

absl::StatusOr<BlockStatus> own_status(
    ByteRange range,
    absl::FunctionRef<absl::StatusOr<BlockStatus>(uint64_t offset,
                                                  uint64_t max_bytes)>
        look) {
  BlockStatus whole;
  for (int looks = 0; looks < kMaxLooks && whole.length < range.length;
       ++looks) {
    const absl::StatusOr<BlockStatus> next =
        look(range.offset + whole.length, range.length - whole.length);
    if (!next.ok()) return next.status();
    if (whole.length == 0) {
      whole = *next;
    } else if (goes_on(whole, *next)) {
      whole.length += next->length;
    } else {
      break;
    }
  }
  return whole;
}

absl::StatusOr<BlockStatus> backing_status(const BlockStatus& unallocated,
                                           ByteRange range,
                                           BlockStatusScope scope,
                                           ByteChannel* backing) {
  BlockStatus result = unallocated;
  if (backing == nullptr) {
    result.zero = true;
    return result;
  }
  const uint64_t backing_bytes = backing->length_bytes();
  // The backing file's last sector is whole.
  result.length = std::min(
      result.length, align_up(backing_bytes, kSectorSizeBytes) - range.offset);
  if (scope == BlockStatusScope::kThisLayer) return result;
  if (range.offset >= backing_bytes) {  // the rest of that sector
    result.allocated = true;
    result.zero = true;
    result.host_offset = range.offset;
    result.depth = 1;
    return result;
  }
  absl::StatusOr<BlockStatus> below = backing->block_status(
      {range.offset, std::min(result.length, backing_bytes - range.offset)});
  if (!below.ok()) return below.status();
  ++below->depth;
  return below;
}

}  // namespace spindle

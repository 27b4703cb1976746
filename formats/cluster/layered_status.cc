#include "formats/cluster/layered_status.h"

#include <algorithm>
#include <cstdint>
#include <optional>

#include "engine/checked_math.h"

namespace spindle {

bool goes_on(const BlockStatus& first, const BlockStatus& next) {
  const auto expected =
      first.host_offset.has_value()
          ? std::optional<uint64_t>(*first.host_offset + first.length)
          : std::nullopt;
  return first.allocated == next.allocated && first.data == next.data &&
         first.zero == next.zero && first.compressed == next.compressed &&
         next.host_offset == expected;
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
  absl::StatusOr<BlockStatus> below = backing->block_status(
      {range.offset, std::min(result.length, backing_bytes - range.offset)});
  if (!below.ok()) return below.status();
  if (range.offset + below->length == backing_bytes)
    below->length = result.length;
  ++below->depth;
  return below;
}

}  // namespace spindle

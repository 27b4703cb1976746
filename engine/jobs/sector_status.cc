#include "engine/jobs/sector_status.h"

#include <algorithm>

#include "engine/checked_math.h"

namespace spindle {

uint64_t whole_sectors_bytes(const BlockDevice& device) {
  return align_up(device.length_bytes(), kSectorSizeBytes);
}

absl::StatusOr<BlockStatus> sector_status(BlockDevice& device, ByteRange range,
                                          BlockStatusScope scope) {
  absl::StatusOr<BlockStatus> status = device.block_status(range, scope);
  if (!status.ok()) return status;
  const uint64_t end =
      align_up(range.offset + status->length, kSectorSizeBytes);
  status->length = std::min(range.length, end - range.offset);
  return status;
}

}  // namespace spindle

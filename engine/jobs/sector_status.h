// Block status as qemu's tools see it: an image is whole sectors.
//
// Thread safety: functions; a device as a device.
#ifndef SPINDLE_ENGINE_JOBS_SECTOR_STATUS_H_
#define SPINDLE_ENGINE_JOBS_SECTOR_STATUS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "engine/sector.h"

namespace spindle {

// The device's length, the last sector whole.
uint64_t whole_sectors_bytes(const BlockDevice& device);

// As BlockDevice::block_status(), in whole sectors: the rest of a partial last
// sector, of the device or of a layer below it, is like what comes before it.
// REQUIRES: `range` is not empty, and ends within the last sector.
absl::StatusOr<BlockStatus> sector_status(BlockDevice& device, ByteRange range,
                                          BlockStatusScope scope);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_SECTOR_STATUS_H_

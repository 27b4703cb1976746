// Reserving the space of clusters before they are written to.
//
// Thread safety: as ByteChannel.
#ifndef SPINDLE_FORMATS_QCOW2_PREALLOCATION_H_
#define SPINDLE_FORMATS_QCOW2_PREALLOCATION_H_

#include "absl/status/status.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/sector.h"

namespace spindle::qcow2 {

// Makes `area` of the file, which is nobody's yet, read as zeroes, and as long
// as it must be: as a hole for kMetadata, with its space reserved for kFalloc,
// written for kFull.
absl::Status reserve_zeroes(ByteChannel* file, ByteRange area,
                            Preallocation mode);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_PREALLOCATION_H_

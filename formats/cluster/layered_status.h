// What formats with clusters and a backing file say of a range of guest bytes.
//
// Thread safety: functions without state.  backing_status() does I/O.
#ifndef SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_
#define SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/sector.h"

namespace spindle {

// True if the bytes behind those of `first` may be said to be of one run with
// them.
bool goes_on(const BlockStatus& first, const BlockStatus& next);

// Of the first bytes of `range`, as many as `unallocated` says, which the image
// itself has not: what its backing file has there, or as far down as `scope`
// lets look.  `backing` is null where none shows through.
absl::StatusOr<BlockStatus> backing_status(const BlockStatus& unallocated,
                                           ByteRange range,
                                           BlockStatusScope scope,
                                           ByteChannel* backing);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_

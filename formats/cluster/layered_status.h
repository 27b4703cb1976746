// What formats with clusters and a backing file say of a range of guest bytes.
//
// Thread safety: functions without state.  Both do I/O.
#ifndef SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_
#define SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/sector.h"

namespace spindle {

// What an image's own tables say of the first bytes of `range`: as long a run
// as a bounded number of calls of `look` finds, since the caller holds the
// gate. look(offset, max_bytes) says it of at least one byte and of at most so
// many.
absl::StatusOr<BlockStatus> own_status(
    ByteRange range,
    absl::FunctionRef<absl::StatusOr<BlockStatus>(uint64_t offset,
                                                  uint64_t max_bytes)>
        look);

// Of the first bytes of `range`, as many as `unallocated` says, which the image
// itself has not: what its backing file has there, or as far down as `scope`
// lets look.  `backing` is null where none shows through; the rest of its last
// sector, if that is a partial one, is a run of its own, as QEMU has it.
absl::StatusOr<BlockStatus> backing_status(const BlockStatus& unallocated,
                                           ByteRange range,
                                           BlockStatusScope scope,
                                           ByteChannel* backing);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_LAYERED_STATUS_H_

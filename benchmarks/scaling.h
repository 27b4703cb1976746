// How one qcow2 driver object scales with threads, over a disk that sleeps.
//
// Thread safety: each Scaling is used by one thread, which starts others.
#ifndef SPINDLE_BENCHMARKS_SCALING_H_
#define SPINDLE_BENCHMARKS_SCALING_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace spindle::benchmarks {

enum class ScalingKind {
  kRead,            // of allocated clusters
  kOverwrite,       // of allocated clusters
  kAllocate,        // first writes, each to a cluster of its own
  kCopyOnWrite,     // the same in an overlay of a full backing file
  kCompressedRead,  // each of a cluster of its own
};

// 4 KiB operations a second of `threads` threads together, each making
// `requests_per_thread` requests of a new image whose file takes `delay` for
// each transfer.
absl::StatusOr<double> measure_scaling(ScalingKind kind, size_t threads,
                                       uint64_t requests_per_thread,
                                       absl::Duration delay);

// How many syncs of the file one guest's flush costs, where `flushers` threads
// each write 4 KiB (to a new cluster if `allocates`) and flush, again and
// again.
absl::StatusOr<double> syncs_per_flush(size_t flushers, bool allocates,
                                       uint64_t flushes_per_thread,
                                       absl::Duration delay);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_SCALING_H_

// The order of the locks inside threadpool/, for Clang's analysis.
//
// Nobody locks these: each stands for a rank, and every real mutex declares
// itself before its own rank and after the previous one.  Code that runs on
// the pool is called with none of them held.
#ifndef SPINDLE_THREADPOOL_POOL_LOCK_RANKS_H_
#define SPINDLE_THREADPOOL_POOL_LOCK_RANKS_H_

#include "absl/base/const_init.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle::pool_locks {

// The scheduler's state: queues, workers, wake-ups.
inline absl::Mutex kScheduler(absl::kConstInit);
// What one worker has claimed.
inline absl::Mutex kBatch ABSL_ACQUIRED_AFTER(kScheduler)(absl::kConstInit);

}  // namespace spindle::pool_locks

#endif  // SPINDLE_THREADPOOL_POOL_LOCK_RANKS_H_

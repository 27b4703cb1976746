// RangeWaiters: requests that met another one in their range, and wait for it
// without occupying a worker, so that they can be withdrawn.
//
// They try again whenever a request that holds ranges is over.  Requests are
// not owned: while one waits here, the engine's reference to it does.
//
// Thread safety: every method, from any thread.  Where nobody waits, a release
// costs one atomic addition.
#ifndef SPINDLE_ENGINE_RANGE_WAITERS_H_
#define SPINDLE_ENGINE_RANGE_WAITERS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/aio.h"

namespace spindle {

class RangeWaiters {
 public:
  RangeWaiters() = default;
  RangeWaiters(const RangeWaiters&) = delete;
  RangeWaiters& operator=(const RangeWaiters&) = delete;

  // How many releases there have been.
  uint64_t releases() const {
    return releases_.load(std::memory_order_seq_cst);
  }

  // Lets `request`, whose attempt began after `seen` releases, wait in state
  // kWaiting; the caller must not touch it any more.  False if there was
  // another release: it had better try again.
  bool park(AioRequest* request, uint64_t seen) ABSL_LOCKS_EXCLUDED(mutex_);

  // A request that may have held ranges is over.  Moves those that should try
  // again to `retry`, in state kRunning: they are the caller's.
  void release(RequestList* retry) ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes a request out that its canceller has claimed while it was waiting.
  void forget(AioRequest* request) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  std::atomic<uint64_t> releases_{0};
  std::atomic<size_t> waiting_count_{0};

  // A leaf: nothing is acquired while it is held.
  absl::Mutex mutex_;
  RequestList waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_RANGE_WAITERS_H_

#include "engine/range_waiters.h"

namespace spindle {

using State = AioRequest::State;

// park() says that it waits and then looks for releases; release() says that
// there is one and then looks for waiters.  All four are sequentially
// consistent, so one of them sees the other.
bool RangeWaiters::park(AioRequest* request, uint64_t seen) {
  absl::MutexLock lock(&mutex_);
  waiting_count_.fetch_add(1, std::memory_order_seq_cst);
  if (releases_.load(std::memory_order_seq_cst) != seen) {
    waiting_count_.fetch_sub(1, std::memory_order_seq_cst);
    return false;
  }
  waiting_.push_back(request);
  request->waits_for_range = true;
  request->state.store(State::kWaiting, std::memory_order_release);
  return true;
}

void RangeWaiters::release(RequestList* retry) {
  releases_.fetch_add(1, std::memory_order_seq_cst);
  if (waiting_count_.load(std::memory_order_seq_cst) == 0) return;
  absl::MutexLock lock(&mutex_);
  while (AioRequest* request = waiting_.pop_front()) {
    waiting_count_.fetch_sub(1, std::memory_order_seq_cst);
    State waiting = State::kWaiting;
    if (!request->state.compare_exchange_strong(waiting, State::kRunning,
                                                std::memory_order_acq_rel)) {
      continue;  // its canceller has claimed it
    }
    request->waits_for_range = false;
    retry->push_back(request);
  }
}

void RangeWaiters::forget(AioRequest* request) {
  absl::MutexLock lock(&mutex_);
  if (!waiting_.contains(request)) return;
  waiting_.remove(request);
  waiting_count_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace spindle

#include "engine/in_flight_tracker.h"

#include <thread>

#include "absl/time/time.h"
#include "engine/thread_shard.h"

// Why nothing is missed.  enter() counts itself and then looks at the epoch
// again; a drain changes the epoch and then counts.  All four are sequentially
// consistent, so either the drain sees the request, or the request sees the new
// epoch and moves to its generation.  leave() and a drainer that goes to sleep
// pair up in the same way through `ended` and somebody_waits_.

namespace spindle {

InFlightTracker::Shard& InFlightTracker::shard() {
  return shards_[thread_shard() % kShards];
}

Generation InFlightTracker::enter() {
  for (;;) {
    const Generation generation = epoch_.load(std::memory_order_seq_cst) & 1;
    shard().started[generation].fetch_add(1, std::memory_order_seq_cst);
    if ((epoch_.load(std::memory_order_seq_cst) & 1) == generation)
      return generation;
    leave(generation);
  }
}

void InFlightTracker::leave(Generation generation) {
  Shard& own = shard();
  own.ended[generation].fetch_add(1, std::memory_order_seq_cst);
  if (somebody_waits_.load(std::memory_order_seq_cst)) wake_drainer();
  own.left.fetch_add(1, std::memory_order_release);
}

void InFlightTracker::leave_here(Generation generation) {
  shard().started[generation].fetch_sub(1, std::memory_order_seq_cst);
  if (somebody_waits_.load(std::memory_order_seq_cst)) wake_drainer();
}

void InFlightTracker::wake_drainer() {
  absl::MutexLock lock(&mutex_);
  changed_.SignalAll();
}

bool InFlightTracker::is_quiet(Generation generation) const {
  uint64_t ended = 0;
  for (const Shard& each : shards_)
    ended += each.ended[generation].load(std::memory_order_seq_cst);
  uint64_t started = 0;
  for (const Shard& each : shards_) {
    started += each.started[generation].load(std::memory_order_seq_cst);
  }
  return started == ended;
}

void InFlightTracker::wait_until_abandoned() const {
  for (;;) {
    uint64_t left = 0;
    uint64_t started = 0;
    for (const Shard& each : shards_)
      left += each.left.load(std::memory_order_acquire);
    for (const Shard& each : shards_) {
      for (const std::atomic<uint64_t>& one : each.started)
        started += one.load();
    }
    if (left == started) return;
    // A thread stands between two instructions of leave().
    std::this_thread::yield();
  }
}

InFlightTracker::Drain::Drain(InFlightTracker* tracker) : tracker_(tracker) {
  absl::MutexLock lock(&tracker->mutex_);
  while (tracker->draining_) tracker->changed_.Wait(&tracker->mutex_);
  tracker->draining_ = true;
  generation_ = tracker->epoch_.load(std::memory_order_relaxed) & 1;
}

InFlightTracker::Drain::~Drain() {
  absl::MutexLock lock(&tracker_->mutex_);
  tracker_->draining_ = false;
  tracker_->changed_.SignalAll();
}

void InFlightTracker::Drain::wait(absl::FunctionRef<bool()> help,
                                  bool has_help) {
  // What is helped along by several threads may need this one again after it
  // found nothing to do, and nobody says so: it looks again.
  constexpr absl::Duration kLookAgain = absl::Milliseconds(1);
  tracker_->epoch_.fetch_add(1, std::memory_order_seq_cst);
  tracker_->somebody_waits_.store(true, std::memory_order_seq_cst);
  while (!tracker_->is_quiet(generation_)) {
    if (has_help && help()) continue;
    absl::MutexLock lock(&tracker_->mutex_);
    if (tracker_->is_quiet(generation_)) break;
    tracker_->changed_.WaitWithTimeout(
        &tracker_->mutex_, has_help ? kLookAgain : absl::InfiniteDuration());
  }
  tracker_->somebody_waits_.store(false, std::memory_order_seq_cst);
}

}  // namespace spindle

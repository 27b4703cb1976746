// InFlightTracker: knows which requests are under way, so that a drain can wait
// for those that came before it, and for no others.
//
// Requests are counted in one of two generations.  A drain makes new requests
// count in the other one, and waits until its own is empty.  Counting costs a
// few atomic additions on a cache line that few threads share; no mutex.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_ENGINE_IN_FLIGHT_TRACKER_H_
#define SPINDLE_ENGINE_IN_FLIGHT_TRACKER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

// 0 or 1.
using Generation = uint32_t;

class InFlightTracker {
 public:
  InFlightTracker() = default;
  // REQUIRES: nothing is in flight.
  ~InFlightTracker() = default;
  InFlightTracker(const InFlightTracker&) = delete;
  InFlightTracker& operator=(const InFlightTracker&) = delete;

  // A request begins; the result is handed to leave() when it ends, which may
  // happen on another thread.
  Generation enter();
  void leave(Generation generation);
  // Cheaper: for a request that ends on the thread that began it, inside a call
  // during which the tracker cannot be destroyed.
  void leave_here(Generation generation);

  // Waits until every thread that is inside leave() has left the tracker alone,
  // so that it may be destroyed.  REQUIRES: nothing is in flight, and nothing
  // enters.
  void wait_until_abandoned() const;

  // The right to drain: one at a time.  Those that come later wait in the
  // constructor.
  class Drain {
   public:
    explicit Drain(InFlightTracker* tracker);
    ~Drain();
    Drain(const Drain&) = delete;
    Drain& operator=(const Drain&) = delete;

    // What enters from wait() on counts in this generation.
    Generation later_generation() const { return 1 - generation_; }
    // Waits until what entered before the call has left.  If `help` is not
    // null, it is called instead of sleeping for as long as it returns true.
    // REQUIRES: called once.
    void wait(absl::FunctionRef<bool()> help, bool has_help);

   private:
    InFlightTracker* const tracker_;
    Generation generation_;
  };

 private:
  static constexpr size_t kShards = 8;
  // A sum over the shards, ended first, is never taken for zero in flight while
  // something is: what leave() counts only grows, and leave_here() takes back
  // what the same thread added to the same shard.
  struct alignas(64) Shard {
    std::array<std::atomic<uint64_t>, 2> started{};
    std::array<std::atomic<uint64_t>, 2> ended{};
    // leave() does not touch the tracker after it has counted itself here.
    std::atomic<uint64_t> left{0};
  };

  Shard& shard();
  bool is_quiet(Generation generation) const;
  void wake_drainer() ABSL_LOCKS_EXCLUDED(mutex_);

  std::array<Shard, kShards> shards_;
  std::atomic<uint32_t> epoch_{0};  // its last bit is the generation
  std::atomic<bool> somebody_waits_{false};

  // A leaf: nothing is acquired while it is held.
  absl::Mutex mutex_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::CondVar changed_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IN_FLIGHT_TRACKER_H_

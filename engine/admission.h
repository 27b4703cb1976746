// Admission: which requests of a device may start.
//
// A request starts at once, unless the device is plugged, has as many requests
// in flight as it may have, or is being changed (hold).  What must wait starts
// in order of arrival.  A plug gathers work for the executor; what needs no
// worker may start in spite of it.  Requests are not owned: while one waits
// here, the engine's reference to it does.
//
// Thread safety: every method, from any thread.  While nothing restrains the
// device, unrestrained() is all that a request costs.
#ifndef SPINDLE_ENGINE_ADMISSION_H_
#define SPINDLE_ENGINE_ADMISSION_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/aio.h"
#include "engine/in_flight_tracker.h"

namespace spindle {

class Admission {
 public:
  // `limit`: how many requests may be in flight; 0: any number.
  explicit Admission(size_t limit)
      : limit_(limit),
        restraint_(limit == 0 ? Restraint::kNone : Restraint::kOther) {}
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // True if every request may start at once.  A request counts in its
  // generation before it asks, so that a hold cannot miss it.
  bool unrestrained() const {
    return restraint_.load(std::memory_order_seq_cst) == Restraint::kNone;
  }
  // The same for a request that needs no worker.
  bool unrestrained_in_place() const {
    return restraint_.load(std::memory_order_seq_cst) <= Restraint::kPlug;
  }

  // True: `request` may start (it has a slot, if there is a limit).  False: it
  // waits, in state kWaiting, and the caller must not touch it any more.
  bool admit_or_queue(AioRequest* request) ABSL_LOCKS_EXCLUDED(mutex_);

  // Moves what may start now to `startable`, in order, in state kRunning:
  // they are the caller's.
  void take_startable(RequestList* startable) ABSL_LOCKS_EXCLUDED(mutex_);

  // A request that had a slot is complete.
  void give_back_slot() ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes a request out that its canceller has claimed while it was waiting.
  void forget(AioRequest* request) ABSL_LOCKS_EXCLUDED(mutex_);

  // Each of these may let requests start: take_startable() afterwards.
  void plug() ABSL_LOCKS_EXCLUDED(mutex_);
  void unplug() ABSL_LOCKS_EXCLUDED(mutex_);
  void set_limit(size_t limit) ABSL_LOCKS_EXCLUDED(mutex_);
  // While somebody drains, a plug holds nothing back: it would never end.
  void begin_drain() ABSL_LOCKS_EXCLUDED(mutex_);
  void end_drain() ABSL_LOCKS_EXCLUDED(mutex_);
  // Requests of `generation` do not start before release().
  // REQUIRES: nothing is held.
  void hold(Generation generation) ABSL_LOCKS_EXCLUDED(mutex_);
  void release() ABSL_LOCKS_EXCLUDED(mutex_);

  // True if a request of `generation` is held.  Costs little where none is.
  bool holds(Generation generation) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits until nothing is held.
  void wait_for_release() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  enum class Restraint : uint8_t {
    kNone,
    kPlug,  // a plug, and what waits for it; nothing else
    kOther,
    kHold,
  };

  bool may_start_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void take_slot_locked(AioRequest* request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void update_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool nothing_held_locked() const ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return !held_generation_.has_value();
  }

  // A leaf: nothing is acquired while it is held.
  mutable absl::Mutex mutex_;
  RequestList waiting_ ABSL_GUARDED_BY(mutex_);
  // Those that a hold keeps; they go behind waiting_ when it ends.
  RequestList held_ ABSL_GUARDED_BY(mutex_);
  size_t limit_ ABSL_GUARDED_BY(mutex_);
  size_t slots_taken_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t plugs_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t drains_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Generation> held_generation_ ABSL_GUARDED_BY(mutex_);

  // Written under mutex_: the sum of the above.
  std::atomic<Restraint> restraint_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_ADMISSION_H_

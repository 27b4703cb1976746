// Suspension: a place where a thread stops until somebody lets it go on.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_ENGINE_SUSPENSION_H_
#define SPINDLE_ENGINE_SUSPENSION_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

class Suspension {
 public:
  Suspension() = default;
  Suspension(const Suspension&) = delete;
  Suspension& operator=(const Suspension&) = delete;

  // Waits for resume(); returns at once if that was called already.
  void stop_here() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    reached_ = true;
    mutex_.Await(absl::Condition(&resumed_));
  }
  void wait_until_reached() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&reached_));
  }
  bool reached() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return reached_;
  }
  void resume() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    resumed_ = true;
  }

 private:
  // A leaf: nothing is acquired while it is held.
  mutable absl::Mutex mutex_;
  bool reached_ ABSL_GUARDED_BY(mutex_) = false;
  bool resumed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SUSPENSION_H_

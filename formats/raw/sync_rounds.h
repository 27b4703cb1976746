// SyncRounds: fdatasync for one file, shared by those who ask at the same time,
// and never trusted again once it has failed.
//
// The kernel reports a lost page to one fdatasync only, and drops the page.  A
// second fdatasync that ran beside the failing one would return success for a
// write that is gone; so there is one at a time, and whoever asks while it runs
// waits for the next one, together with all others who asked meanwhile.
//
// Thread safety: every method, from any thread.  sync() blocks.
#ifndef SPINDLE_FORMATS_RAW_SYNC_ROUNDS_H_
#define SPINDLE_FORMATS_RAW_SYNC_ROUNDS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

class SyncRounds {
 public:
  SyncRounds() = default;
  SyncRounds(const SyncRounds&) = delete;
  SyncRounds& operator=(const SyncRounds&) = delete;

  // Makes what was written to `fd` before the call durable.  Returns 0, or the
  // errno of this fdatasync or of the first that ever failed.
  int sync(int fd) ABSL_LOCKS_EXCLUDED(mutex_);

  // The file has been opened anew: forgets a failure.
  void forget_failure() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // Not held across fdatasync.  A leaf.
  absl::Mutex mutex_;
  absl::CondVar round_ended_;
  uint64_t rounds_started_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t rounds_ended_ ABSL_GUARDED_BY(mutex_) = 0;
  int error_number_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_SYNC_ROUNDS_H_

// SharedRounds: who wants what is dirty on disk at the same time as others
// shares one round of writing and syncing with them.
//
// A round takes a snapshot of what is dirty when it begins, so whoever arrives
// while one runs waits for the next, which serves all who wait.
//
// Thread safety: every method, from any thread.  No lock is held while a round
// runs.
#ifndef SPINDLE_FORMATS_CLUSTER_SHARED_ROUNDS_H_
#define SPINDLE_FORMATS_CLUSTER_SHARED_ROUNDS_H_

#include <atomic>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class SharedRounds {
 public:
  // Makes durable what completed before the call; every caller's `run_round`
  // does the same.
  using RunRound = absl::FunctionRef<absl::Status()>;

  SharedRounds() = default;
  SharedRounds(const SharedRounds&) = delete;
  SharedRounds& operator=(const SharedRounds&) = delete;

  // Returns what `run_round` returned, here or to the caller that ran the round
  // for this one, too.
  absl::Status flush(RunRound run_round) ABSL_LOCKS_EXCLUDED(mutex_);

  // What is dirty crowds a cache: the same, but if somebody is at it already,
  // only where the cache is overfull, so that those who make more dirty do not
  // outrun it.
  absl::Status write_back(bool is_overfull, RunRound run_round)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // How many callers of flush() wait for another one's round, for tests.
  int waiting_count() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // One round, past or to come; shared by those who wait for it.
  struct Round {
    bool done = false;
    absl::Status status;
  };

  std::atomic<bool> writing_back_{false};

  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::flush)
      ABSL_ACQUIRED_BEFORE(lock_ranks::allocator){LockRank::kFlush};
  // The round that those who come now will be served by; not started.
  std::shared_ptr<Round> next_ ABSL_GUARDED_BY(mutex_) =
      std::make_shared<Round>();
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::CondVar round_ended_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_SHARED_ROUNDS_H_

// ClaimedBatch: the items that one worker has claimed and not yet started, and
// the notifications that wait for the end of its batch.
//
// It does not own the items.  Its worker takes them one by one; others may
// withdraw one, or take back all of them when the worker is stuck.
//
// Thread safety: any thread may call any method.  Items move between a queue
// and a batch only under the scheduler's lock, which comes before this one.
#ifndef SPINDLE_THREADPOOL_CLAIMED_BATCH_H_
#define SPINDLE_THREADPOOL_CLAIMED_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "threadpool/executor.h"
#include "threadpool/pool_lock_ranks.h"
#include "threadpool/work_list.h"

namespace spindle {

class ClaimedBatch {
 public:
  using Notifications =
      absl::InlinedVector<std::shared_ptr<BatchNotification>, 4>;

  // What the watcher wants to know about a worker.
  struct Look {
    uint64_t started = 0;  // items that the worker ever started
    bool waiting =
        false;  // items or notifications wait behind the one it is in
  };

  // `worker`: becomes the tag of the list that holds the items.
  explicit ClaimedBatch(size_t worker) : items_(worker) {}
  ClaimedBatch(const ClaimedBatch&) = delete;
  ClaimedBatch& operator=(const ClaimedBatch&) = delete;

  // Begins a batch with the first `count` items of `from`.
  void claim(WorkList& from, size_t count) ABSL_LOCKS_EXCLUDED(mu_);

  // The next item to run, which has then started; null at the end.
  WorkItem* take() ABSL_LOCKS_EXCLUDED(mu_);

  // Removes `item` if this batch holds it.
  bool withdraw(WorkItem* item) ABSL_LOCKS_EXCLUDED(mu_);

  // Puts the items that were not started at the front of `to`, in their old
  // order; returns how many there were.
  size_t give_back(WorkList& to) ABSL_LOCKS_EXCLUDED(mu_);

  // Keeps `notification` for the end of the batch, once.
  void add(const std::shared_ptr<BatchNotification>& notification)
      ABSL_LOCKS_EXCLUDED(mu_);
  Notifications take_notifications() ABSL_LOCKS_EXCLUDED(mu_);

  bool holds(const WorkItem* item) const {
    return WorkList::holder(item) == &items_;
  }
  Look look() const ABSL_LOCKS_EXCLUDED(mu_);

  // Items that were started since the last call of end().
  uint64_t started_in_batch() const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t end() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable absl::Mutex mu_ ABSL_ACQUIRED_AFTER(pool_locks::kScheduler)
      ABSL_ACQUIRED_BEFORE(pool_locks::kBatch);
  // The address of items_ is compared without the lock, see holds().
  WorkList items_ ABSL_GUARDED_BY(mu_);
  Notifications notifications_ ABSL_GUARDED_BY(mu_);
  uint64_t started_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t started_before_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_CLAIMED_BATCH_H_

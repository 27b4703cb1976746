// Scheduler: decides which worker of a pool runs which item, and who wakes.
//
// It knows nothing of where its threads come from: ThreadPool lends it
// `width` threads that call work() and one that calls watch(), and gets them
// back after stop().  Items belong to their submitters.
//
// How it works.  Each queue is first in, first out, and has a cap on workers;
// queues that have something to start stand in a ring and are served in turn.
// A worker claims a batch from the queue whose turn it is, runs it item by
// item, sends the notifications that were asked for meanwhile, and comes back.
// Short items share a few workers, no more than there are processors; items
// that take longer (they block) get a worker each.  Where items take turns (see
// TurnTaking) short ones have one worker.  The watcher sleeps unless
// something waits behind a running item; then it looks around every half
// millisecond: what a stuck worker has claimed goes back to its queue, its
// notifications are sent, and more workers are woken, twice as many each time
// while nothing moves.
//
// Thread safety: any thread may call any method, except where a comment says
// which.
#ifndef SPINDLE_THREADPOOL_SCHEDULER_H_
#define SPINDLE_THREADPOOL_SCHEDULER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "threadpool/claimed_batch.h"
#include "threadpool/duration_estimate.h"
#include "threadpool/executor.h"
#include "threadpool/parker.h"
#include "threadpool/pool_lock_ranks.h"
#include "threadpool/spin_policy.h"
#include "threadpool/turn_taking.h"
#include "threadpool/work_list.h"

namespace spindle {

class Scheduler {
 public:
  // Names a queue of this scheduler until remove_queue().
  using QueueId = size_t;

  // `processors`: on how many of them the workers can really run at a time.
  Scheduler(size_t width, size_t processors);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  size_t width() const { return workers_.size(); }

  QueueId add_queue(size_t max_workers) ABSL_LOCKS_EXCLUDED(mu_);
  // As WorkQueue::make_turn_queue().  REQUIRES: `partner` has no turn queue.
  QueueId add_turn_queue(QueueId partner) ABSL_LOCKS_EXCLUDED(mu_);
  // The items that are still queued run all the same.
  void remove_queue(QueueId id) ABSL_LOCKS_EXCLUDED(mu_);

  // As in WorkQueue.
  size_t submit(QueueId id, absl::Span<WorkItem* const> items)
      ABSL_LOCKS_EXCLUDED(mu_);
  bool withdraw(QueueId id, WorkItem* item) ABSL_LOCKS_EXCLUDED(mu_);
  bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification);
  WorkQueueCounters counters(QueueId id) const ABSL_LOCKS_EXCLUDED(mu_);

  // True on a thread that is inside WorkItem::run() of this scheduler.
  bool on_worker_thread() const;

  // Refuses new items; abandons the queued ones if `mode` says so; returns
  // without waiting.  work() and watch() return once nothing is left to do.
  void stop(Executor::StopMode mode) ABSL_LOCKS_EXCLUDED(mu_);

  // What the threads do.  Each index below width() is used by one thread.
  void work(size_t index) ABSL_LOCKS_EXCLUDED(mu_);
  void watch() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);

  // What a worker shares with others without the scheduler's lock.
  struct Worker {
    explicit Worker(size_t index) : batch(index) {}
    ClaimedBatch batch;
    Parker parker;
  };

  static std::vector<std::unique_ptr<Worker>> make_workers(size_t count);

  // What the scheduler knows about a worker.
  struct WorkerState {
    size_t queue = kNone;        // that it works for
    bool counted_short = false;  // is among short_workers_
    bool counted_batch = false;  // is among batch_workers_
    bool stuck = false;          // made no progress between two looks
    uint64_t started_seen = 0;
    int64_t batch_began = 0;  // nanoseconds
    int64_t idle_since = 0;   // nanoseconds
    bool on_trial = false;    // the batch is that of its queue's TurnTaking
    bool has_spun = false;    // since its last batch
  };

  struct QueueState {
    WorkList items;
    size_t cap = 0;
    size_t active = 0;  // workers that have a batch of this queue
    size_t stuck = 0;   // of these, those that are stuck
    DurationEstimate estimate;
    size_t partner = kNone;  // shares the cap
    bool takes_turns = false;
    TurnTaking turns;
    bool in_ring = false;
    size_t next_in_ring = kNone;
    // This queue's part of slow_demand_ and short_demand_.
    size_t slow_demand = 0;
    size_t short_demand = 0;
    bool held_back = false;  // is among held_back_
    bool removed = false;
    WorkQueueCounters counters;
  };

  // Whom to wake once the lock is released.
  struct Wakes {
    absl::InlinedVector<Parker*, 4> parkers;
    bool everyone = false;
  };

  // What a worker does next.
  enum class Step { kRun, kSpin, kPark, kLeave };

  Step next_step(size_t index, Wakes& wakes) ABSL_LOCKS_EXCLUDED(mu_);
  void run_batch(ClaimedBatch& batch);
  void spin() const;
  void wake(const Wakes& wakes);

  void settle_locked(size_t index, int64_t now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool claim_locked(size_t index, int64_t now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void settle_turn_locked(WorkerState& state, QueueState& queue, int64_t now,
                          uint64_t ran) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t pop_ring_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  QueueId new_queue_locked(size_t cap) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t startable_locked(const QueueState& queue) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Its next item waits for another's turn to end.
  static bool waits_for_turn(const QueueState& queue);
  static size_t batch_of(const QueueState& queue);

  // To be called whenever something about a queue has changed.
  void update_queue_locked(size_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // ... its number of active workers included.
  void update_active_locked(size_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void free_queue_locked(size_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Chooses whom to wake for the work that is there now.
  void plan_wakes_locked(Wakes& wakes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t workers_wanted_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool wake_parked_locked(Wakes& wakes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool watch_needed_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // One look of the watcher; returns how long it may sleep.
  absl::Duration look_around(Wakes& wakes, ClaimedBatch::Notifications& overdue)
      ABSL_LOCKS_EXCLUDED(mu_);
  bool mark_stuck_locked(ClaimedBatch::Notifications& overdue)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void take_over_locked(size_t index, ClaimedBatch::Notifications& overdue)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ramp_up_locked(Wakes& wakes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration pause_locked(bool something_stuck)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void reclaim_all_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  WorkItem* pop_abandoned() ABSL_LOCKS_EXCLUDED(mu_);

  const size_t processors_;
  const std::vector<std::unique_ptr<Worker>> workers_;
  Parker watcher_;
  // Whether the ring has an entry; for the worker that spins.
  std::atomic<bool> ring_hint_ = false;
  // Set once: work() and watch() return.
  std::atomic<bool> leaving_ = false;

  mutable absl::Mutex mu_ ABSL_ACQUIRED_BEFORE(pool_locks::kScheduler);
  std::vector<WorkerState> states_ ABSL_GUARDED_BY(mu_);
  // A deque, because the lists inside may not move.
  std::deque<QueueState> queues_ ABSL_GUARDED_BY(mu_);
  std::vector<QueueId> free_ids_ ABSL_GUARDED_BY(mu_);
  size_t ring_first_ ABSL_GUARDED_BY(mu_) = kNone;
  size_t ring_last_ ABSL_GUARDED_BY(mu_) = kNone;

  size_t queued_ ABSL_GUARDED_BY(mu_) = 0;  // items in all queues
  size_t slow_demand_ ABSL_GUARDED_BY(mu_) =
      0;  // workers wanted for slow items
  size_t short_demand_ ABSL_GUARDED_BY(mu_) =
      0;                                   // workers wanted for short items
  size_t searching_ ABSL_GUARDED_BY(mu_);  // awake, about to claim
  size_t busy_ ABSL_GUARDED_BY(mu_) = 0;   // have a batch
  size_t short_workers_ ABSL_GUARDED_BY(mu_) =
      0;  // busy with short items, not stuck
  size_t batch_workers_ ABSL_GUARDED_BY(mu_) =
      0;  // claimed more than one item, not stuck
  size_t held_back_ ABSL_GUARDED_BY(mu_) =
      0;  // queues with items that wait for their turn
  std::vector<size_t> parked_
      ABSL_GUARDED_BY(mu_);  // the last one sleeps shortest
  bool spinning_ ABSL_GUARDED_BY(mu_) = false;
  SpinPolicy spin_policy_ ABSL_GUARDED_BY(mu_);

  bool watching_ ABSL_GUARDED_BY(mu_) = false;
  uint32_t calm_looks_ ABSL_GUARDED_BY(mu_) = 0;
  uint32_t idle_looks_ ABSL_GUARDED_BY(mu_) = 0;
  size_t ramp_ ABSL_GUARDED_BY(mu_) = 1;
  bool progress_ ABSL_GUARDED_BY(mu_) =
      false;  // a batch ended since the last look

  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelling_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_SCHEDULER_H_

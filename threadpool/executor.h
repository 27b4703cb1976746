// Executor: where work that may block runs.
//
// The generic layer hands every asynchronous request to an Executor and knows
// nothing else about threads.  There are two implementations: ThreadPool
// (oneTBB) and InlineExecutor (no threads at all: its work runs when somebody
// calls run_one()).  An Executor knows nothing of blocks.
//
// Work is intrusive: a WorkItem is a base of the object that does the work, so
// submitting allocates nothing.  The submitter owns the item and keeps it
// alive until run() or abandon() has been entered, or withdraw() has returned
// true; the executor does not touch an item after it has called run() or
// abandon(), so either may destroy it.
//
// Thread safety: every method may be called from any thread at any time.
#ifndef SPINDLE_THREADPOOL_EXECUTOR_H_
#define SPINDLE_THREADPOOL_EXECUTOR_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"

namespace spindle {

class WorkList;

// One unit of work.  Exactly one of these happens to an item that submit()
// accepted: run() is called once, abandon() is called once, or withdraw()
// returns true.
class WorkItem {
 public:
  WorkItem() = default;
  WorkItem(const WorkItem&) = delete;
  WorkItem& operator=(const WorkItem&) = delete;

  // Does the work.  May block.  May submit and withdraw other items.  May
  // destroy *this.
  virtual void run() = 0;

  // Called instead of run() when the executor stops and cancels what is
  // queued.  Must not block.  May destroy *this.
  virtual void abandon() = 0;

 protected:
  ~WorkItem() = default;

 private:
  friend class WorkList;

  // Owned by the executor while the item is queued.
  WorkItem* previous_ = nullptr;
  WorkItem* next_ = nullptr;
  // The list that holds the item, or null: makes withdraw() O(1).  Written
  // under the lock of that list; atomic because withdraw() reads it before it
  // knows which lock that is.
  std::atomic<WorkList*> list_ = nullptr;
};

// A notification that may wait until its worker has nothing better to do:
// typically "wake the thread that reaps these completions".  See
// WorkQueue::notify_after_batch().
class BatchNotification {
 public:
  virtual ~BatchNotification() = default;

  // Called on a pool thread, with no lock of the pool held.  Must not block.
  virtual void batch_ended() = 0;
};

struct WorkQueueOptions {
  // For thread names, logs and counters.
  std::string name;
  // The most workers that may run items of this queue at one time; 0 lets the
  // executor choose a cap below its width, so that one queue whose work hangs
  // cannot occupy every worker.
  size_t max_workers = 0;
};

struct WorkQueueCounters {
  uint64_t submitted = 0;
  uint64_t ran = 0;
  uint64_t withdrawn = 0;
  uint64_t abandoned = 0;
  // Items that a worker had claimed and another took over because the first
  // was stuck in an earlier item.
  uint64_t taken_over = 0;
};

// A first-in first-out queue of work with its own cap on workers.  One block
// device has one queue.  Queues of one executor share its workers fairly.
class WorkQueue {
 public:
  virtual ~WorkQueue() = default;

  // Queues `item`, to be started in order of arrival.  Returns false, and
  // leaves the item alone, if the executor has stopped, or if this process is
  // a fork() of the one that created the executor.  Never runs the item
  // inside the call.
  [[nodiscard]] virtual bool submit(WorkItem* item) = 0;

  // Queues `items` in order with at most one round of wake-ups; returns how
  // many of them, from the front, were accepted.
  [[nodiscard]] virtual size_t submit_batch(
      absl::Span<WorkItem* const> items) = 0;

  // Takes `item` back if no worker has started it.  True: the item will not
  // run, and the executor has forgotten it.  False: it runs, has run, or was
  // never submitted to this queue.  Never blocks on a running item.
  // REQUIRES: `item` is alive (the caller knows that it has not completed, or
  // holds it by other means).
  [[nodiscard]] virtual bool withdraw(WorkItem* item) = 0;

  // From inside WorkItem::run() only: asks for notification->batch_ended() at
  // the end of the batch that the calling worker is working through, or
  // sooner: at once if the worker turns out to be stuck in a later item.  The
  // executor keeps the shared_ptr until then and calls once however often it
  // was asked during one batch.  Returns false if the calling thread is not
  // inside run() of this executor, or if the executor cannot promise it; the
  // caller then notifies at once.
  [[nodiscard]] virtual bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification) = 0;

  virtual WorkQueueCounters counters() const = 0;

  // A second queue, which shares the cap on workers with this one, for items
  // that take turns at what they use (the kernel lets one buffered write into a
  // file at a time).  While they are short, one worker runs them all: a second
  // one would only get into its way.  Where they take long, or one hangs, they
  // are treated as any others.  Items of the two queues have no order.
  virtual std::shared_ptr<WorkQueue> make_turn_queue() = 0;
};

class Executor {
 public:
  // What becomes of queued items when the executor stops.
  enum class StopMode {
    kRunQueued,     // every accepted item runs
    kCancelQueued,  // items that have not started are abandoned
  };

  virtual ~Executor() = default;

  // Creates a queue.  The queue may outlive the executor; it then refuses
  // submissions.
  virtual std::shared_ptr<WorkQueue> make_queue(
      const WorkQueueOptions& options) = 0;

  // How many items can run, and block, at one time.  0: this executor has no
  // threads, and work runs only inside run_one().
  virtual size_t width() const = 0;

  // Where width() is 0: runs one queued item on the calling thread; false if
  // there was none.  Elsewhere: returns false.  Whoever waits for a request
  // (drain, close, CompletionQueue::wait) calls this until its condition
  // holds, so the same code works with and without threads.
  virtual bool run_one() = 0;

  // True on a thread that is inside WorkItem::run() of this executor.
  virtual bool on_worker_thread() const = 0;

  // Refuses new work, then runs or abandons what is queued, waits for what is
  // running, and joins the threads.  Idempotent; the destructor does it with
  // kRunQueued.  REQUIRES: !on_worker_thread().
  virtual void stop(StopMode mode) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_EXECUTOR_H_

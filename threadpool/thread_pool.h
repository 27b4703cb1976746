// ThreadPool: an Executor whose threads are lent by oneTBB, for work that
// blocks.
//
// The width does not depend on the number of processors.  The pool owns its
// arena and, together with the other pools of the process, one
// tbb::global_control that admits all their threads; each thread runs one long
// task of ours and sleeps on a primitive of ours, so an idle pool uses no
// processor time.  One more thread than the width watches for workers that
// are stuck (see Scheduler).
//
// Threads are named "<name>-<i>" and block all signals.  After a fork(), the
// child's copy of a pool accepts nothing, and its destruction does nothing.
//
// Thread safety: every method may be called from any thread at any time.
#ifndef SPINDLE_THREADPOOL_THREAD_POOL_H_
#define SPINDLE_THREADPOOL_THREAD_POOL_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "threadpool/executor.h"
#include "threadpool/fork_guard.h"
#include "threadpool/scheduler.h"

namespace spindle {

struct ThreadPoolOptions {
  // How many items can run, and block, at one time.
  size_t width = 64;
  // For thread names; Linux shows 15 characters, the number included.
  std::string name = "spindle";
};

class ThreadPool final : public Executor {
 public:
  // All pools of a process together have fewer threads than this, where no
  // other user of oneTBB came first.
  static constexpr size_t kMostThreads = 2048;

  // Starts the threads.  kInvalidArgument: the width is 0 or beyond
  // kMostThreads.  kResourceExhausted: oneTBB does not admit so many threads
  // (another tbb::global_control of this process, or its own limit, stands in
  // the way), or they did not start.  kFailedPrecondition: this process was
  // forked off while a pool was alive.
  static absl::StatusOr<std::unique_ptr<ThreadPool>> create(
      const ThreadPoolOptions& options);

  ~ThreadPool() override;

  std::shared_ptr<WorkQueue> make_queue(
      const WorkQueueOptions& options) override;
  size_t width() const override { return scheduler_->width(); }
  bool run_one() override { return false; }
  bool on_worker_thread() const override {
    return scheduler_->on_worker_thread();
  }
  void stop(StopMode mode) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  class Threads;

  ThreadPool(std::shared_ptr<Scheduler> scheduler,
             std::unique_ptr<Threads> threads);

  const ForkGuard fork_guard_;
  std::shared_ptr<Scheduler> scheduler_;
  std::unique_ptr<Threads> threads_;

  absl::Mutex mu_;
  bool joining_ ABSL_GUARDED_BY(mu_) = false;
  bool joined_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_THREAD_POOL_H_

#include "threadpool/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/const_init.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "oneapi/tbb/global_control.h"
#include "oneapi/tbb/task_arena.h"
#include "threadpool/pool_check.h"

namespace spindle {
namespace {

// How long the threads may take to appear; only a fault takes this long.
constexpr absl::Duration kStartDeadline = absl::Seconds(60);

// Blocks every signal on the calling thread while it lives.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

// Names the calling thread while it lives.
class ThreadNamed {
 public:
  explicit ThreadNamed(const std::string& name) {
    pthread_getname_np(pthread_self(), before_, sizeof(before_));
    pthread_setname_np(pthread_self(), name.c_str());
  }
  ~ThreadNamed() { pthread_setname_np(pthread_self(), before_); }
  ThreadNamed(const ThreadNamed&) = delete;
  ThreadNamed& operator=(const ThreadNamed&) = delete;

 private:
  static constexpr size_t kLinuxNameSize = 16;
  char before_[kLinuxNameSize] = {};
};

std::string thread_name(const std::string& pool, const std::string& suffix) {
  constexpr size_t kLongestName = 15;
  return absl::StrCat(
      pool.substr(0, kLongestName - std::min(kLongestName, suffix.size())),
      suffix);
}

// Calls `body` on a short-lived thread.  oneTBB attaches data to each thread
// that calls it, and cannot be finalized before that thread ends: so only such
// threads call it for us, and never those of the embedder.  The threads that
// oneTBB starts meanwhile inherit the blocked signals.
void run_apart(const std::function<void()>& body) {
  SignalsBlocked blocked;
  std::thread thread(body);
  thread.join();
}

size_t usable_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return static_cast<size_t>(CPU_COUNT(&set));
}

using Limit = tbb::global_control;

// The one global_control that all pools of the process share.  The smallest
// live control wins, so one control per pool would let the narrowest pool
// starve the others.  Only threads of run_apart() call its methods.
class SharedLimit {
 public:
  // Admits `threads` more threads.
  absl::Status admit(size_t threads) ABSL_LOCKS_EXCLUDED(mu_);
  // The reverse; the last one joins oneTBB's threads, if nobody else in the
  // process uses them.
  void dismiss(size_t threads) ABSL_LOCKS_EXCLUDED(mu_);

  // Safe after a fork: takes no lock.
  bool in_use() const { return in_use_.load(std::memory_order_relaxed); }

 private:
  void apply_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void finalize_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::atomic<bool> in_use_ = false;
  absl::Mutex mu_;
  size_t threads_ ABSL_GUARDED_BY(mu_) = 0;
  // What was admitted before us: the embedder's own share.
  size_t others_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<Limit> limit_ ABSL_GUARDED_BY(mu_);
  tbb::task_scheduler_handle scheduler_ ABSL_GUARDED_BY(mu_);
};

absl::Status SharedLimit::admit(size_t threads) {
  absl::MutexLock lock(&mu_);
  if (threads_ == 0) {
    in_use_.store(true, std::memory_order_relaxed);
    others_ = Limit::active_value(Limit::max_allowed_parallelism);
    scheduler_ = tbb::task_scheduler_handle{tbb::attach{}};
    // oneTBB sizes its table of threads once, by the limit that it finds.
    limit_ = std::make_unique<Limit>(Limit::max_allowed_parallelism,
                                     ThreadPool::kMostThreads);
    tbb::task_arena(1, 0).initialize();
  }
  threads_ += threads;
  apply_locked();
  // oneTBB counts the caller of a parallel algorithm as one thread.
  const size_t needed = threads_ + 1;
  const size_t allowed = Limit::active_value(Limit::max_allowed_parallelism);
  if (allowed >= needed) return absl::OkStatus();
  threads_ -= threads;
  if (threads_ == 0) {
    finalize_locked();
  } else {
    apply_locked();
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "thread pool: the pools of this process need max_allowed_parallelism ",
      needed, ", but oneTBB allows ", allowed,
      " (another tbb::global_control, or oneTBB's own limit)"));
}

void SharedLimit::dismiss(size_t threads) {
  absl::MutexLock lock(&mu_);
  threads_ -= threads;
  if (threads_ == 0) {
    finalize_locked();
  } else {
    apply_locked();
  }
}

void SharedLimit::apply_locked() {
  // The new one first: without any, the limit would fall for a moment.
  auto limit = std::make_unique<Limit>(Limit::max_allowed_parallelism,
                                       threads_ + others_);
  limit_ = std::move(limit);
}

void SharedLimit::finalize_locked() {
  // False, and harmless, where the embedder uses oneTBB as well.
  static_cast<void>(tbb::finalize(scheduler_, std::nothrow));
  limit_.reset();
  in_use_.store(false, std::memory_order_relaxed);
}

SharedLimit& shared_limit() {
  static SharedLimit* const limit = new SharedLimit;
  return *limit;
}

}  // namespace

// The threads of one pool: an arena with one long task per thread.
class ThreadPool::Threads {
 public:
  explicit Threads(std::shared_ptr<Scheduler> scheduler)
      : scheduler_(std::move(scheduler)) {}

  // Returns once every thread runs.  After an error nothing is left to join.
  absl::Status start(const std::string& name) ABSL_LOCKS_EXCLUDED(mu_);
  // REQUIRES: start() succeeded; the scheduler was stopped.
  void join() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  size_t count() const { return scheduler_->width() + 1; }
  void run(size_t index, const std::string& name) ABSL_LOCKS_EXCLUDED(mu_);
  bool all_started_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return started_ == count();
  }
  bool all_ended_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return ended_ == count();
  }

  const std::shared_ptr<Scheduler> scheduler_;
  std::optional<tbb::task_arena> arena_;  // touched inside run_apart() only
  absl::Mutex mu_;
  size_t started_ ABSL_GUARDED_BY(mu_) = 0;
  size_t ended_ ABSL_GUARDED_BY(mu_) = 0;
};

absl::Status ThreadPool::Threads::start(const std::string& name) {
  absl::Status admitted;
  run_apart([this, &admitted, &name] {
    admitted = shared_limit().admit(count());
    if (!admitted.ok()) return;
    constexpr unsigned kReservedForCallers = 0;
    arena_.emplace(static_cast<int>(count()), kReservedForCallers);
    for (size_t i = 0; i < count(); ++i)
      arena_->enqueue([this, i, name] { run(i, name); });
  });
  if (!admitted.ok()) return admitted;
  size_t started = 0;
  {
    absl::MutexLock lock(&mu_);
    const absl::Condition all_started(this, &Threads::all_started_locked);
    if (mu_.AwaitWithTimeout(all_started, kStartDeadline))
      return absl::OkStatus();
    started = started_;
  }
  scheduler_->stop(StopMode::kCancelQueued);
  join();
  return absl::ResourceExhaustedError(absl::StrCat(
      "thread pool: ", started, " of ", count(), " threads started"));
}

void ThreadPool::Threads::run(size_t index, const std::string& name) {
  {
    const bool watcher = index == scheduler_->width();
    SignalsBlocked blocked;
    ThreadNamed named(
        thread_name(name, watcher ? "-watch" : absl::StrCat("-", index)));
    {
      absl::MutexLock lock(&mu_);
      ++started_;
    }
    if (watcher) {
      scheduler_->watch();
    } else {
      scheduler_->work(index);
    }
  }
  // The last touch of *this: join() may return at once.
  absl::MutexLock lock(&mu_);
  ++ended_;
}

void ThreadPool::Threads::join() {
  {
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(this, &Threads::all_ended_locked));
  }
  run_apart([this] {
    arena_.reset();
    shared_limit().dismiss(count());
  });
}

namespace {

// What an embedder holds of a queue.  Keeps the scheduler alive, not the pool.
class PoolQueue final : public WorkQueue {
 public:
  PoolQueue(std::shared_ptr<Scheduler> scheduler, const ForkGuard& fork_guard,
            Scheduler::QueueId id)
      : fork_guard_(fork_guard), scheduler_(std::move(scheduler)), id_(id) {}

  ~PoolQueue() override {
    if (fork_guard_.crossed_fork()) {
      // Its lock may be held for ever: leave it alone.
      new std::shared_ptr<Scheduler>(std::move(scheduler_));
    } else {
      scheduler_->remove_queue(id_);
    }
  }

  bool submit(WorkItem* item) override { return submit_batch({&item, 1}) == 1; }

  size_t submit_batch(absl::Span<WorkItem* const> items) override {
    return fork_guard_.crossed_fork() ? 0 : scheduler_->submit(id_, items);
  }

  bool withdraw(WorkItem* item) override {
    // In a forked process nobody is going to start what is in a list.
    if (fork_guard_.crossed_fork()) return WorkList::holder(item) != nullptr;
    return scheduler_->withdraw(id_, item);
  }

  bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification) override {
    return !fork_guard_.crossed_fork() &&
           scheduler_->notify_after_batch(notification);
  }

  WorkQueueCounters counters() const override {
    return fork_guard_.crossed_fork() ? WorkQueueCounters{}
                                      : scheduler_->counters(id_);
  }

  std::shared_ptr<WorkQueue> make_turn_queue() override {
    // In a forked process it is as good as this one: it takes nothing.
    const Scheduler::QueueId id =
        fork_guard_.crossed_fork() ? id_ : scheduler_->add_turn_queue(id_);
    return std::make_shared<PoolQueue>(scheduler_, fork_guard_, id);
  }

 private:
  const ForkGuard fork_guard_;
  std::shared_ptr<Scheduler> scheduler_;
  const Scheduler::QueueId id_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ThreadPool>> ThreadPool::create(
    const ThreadPoolOptions& options) {
  // With the pool's own watcher, the process's spare threads and the caller.
  constexpr size_t kMostWidth = kMostThreads / 2;
  if (options.width == 0 || options.width > kMostWidth) {
    return absl::InvalidArgumentError(
        absl::StrCat("thread pool: width is ", options.width,
                     ", but must lie between 1 and ", kMostWidth));
  }
  // Made by the first call in the process, and inherited by its children.
  static const ForkGuard process_guard;
  if (process_guard.crossed_fork() && shared_limit().in_use()) {
    return absl::FailedPreconditionError(
        "thread pool: this process was forked off while a pool was alive");
  }
  auto scheduler =
      std::make_shared<Scheduler>(options.width, usable_processors());
  auto threads = std::make_unique<Threads>(scheduler);
  if (absl::Status status = threads->start(options.name); !status.ok())
    return status;
  return std::unique_ptr<ThreadPool>(
      new ThreadPool(std::move(scheduler), std::move(threads)));
}

ThreadPool::ThreadPool(std::shared_ptr<Scheduler> scheduler,
                       std::unique_ptr<Threads> threads)
    : scheduler_(std::move(scheduler)), threads_(std::move(threads)) {}

ThreadPool::~ThreadPool() {
  if (fork_guard_.crossed_fork()) {
    // The threads are in the other process, and with them perhaps the locks.
    new std::shared_ptr<Scheduler>(std::move(scheduler_));
    static_cast<void>(threads_.release());
    return;
  }
  stop(StopMode::kRunQueued);
}

std::shared_ptr<WorkQueue> ThreadPool::make_queue(
    const WorkQueueOptions& options) {
  return std::make_shared<PoolQueue>(
      scheduler_, fork_guard_, scheduler_->add_queue(options.max_workers));
}

void ThreadPool::stop(StopMode mode) {
  if (fork_guard_.crossed_fork()) return;
  scheduler_->stop(mode);
  bool first = false;
  {
    absl::MutexLock lock(&mu_);
    first = !std::exchange(joining_, true);
    if (!first) mu_.Await(absl::Condition(&joined_));
  }
  if (!first) return;
  threads_->join();
  absl::MutexLock lock(&mu_);
  joined_ = true;
}

}  // namespace spindle

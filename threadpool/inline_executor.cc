#include "threadpool/inline_executor.h"

#include <algorithm>
#include <deque>
#include <random>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/inlined_vector.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "threadpool/pool_check.h"
#include "threadpool/work_list.h"

namespace spindle {

class InlineExecutor::Core {
 public:
  using QueueId = size_t;

  explicit Core(const InlineExecutorOptions& options)
      : random_order_(options.seed.has_value()),
        window_(std::max<size_t>(options.reorder_window, 1)),
        random_(options.seed.value_or(0)) {}

  QueueId add_queue(size_t max_workers) ABSL_LOCKS_EXCLUDED(mu_);
  void remove_queue(QueueId id) ABSL_LOCKS_EXCLUDED(mu_);
  size_t submit(QueueId id, absl::Span<WorkItem* const> items)
      ABSL_LOCKS_EXCLUDED(mu_);
  bool withdraw(QueueId id, WorkItem* item) ABSL_LOCKS_EXCLUDED(mu_);
  bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification) const;
  WorkQueueCounters counters(QueueId id) const ABSL_LOCKS_EXCLUDED(mu_);

  bool run_one() ABSL_LOCKS_EXCLUDED(mu_);
  bool on_worker_thread() const { return innermost_frame() != nullptr; }
  void stop(StopMode mode) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // One run_one() on the stack of the calling thread.
  struct Frame {
    const Core* core;
    Frame* outer;
    absl::InlinedVector<std::shared_ptr<BatchNotification>, 4> notifications;
  };

  struct QueueState {
    WorkList items;
    size_t cap = 0;  // 0: none
    size_t active = 0;
    bool removed = false;
    WorkQueueCounters counters;

    bool startable() const {
      return !items.empty() && (cap == 0 || active < cap);
    }
  };

  Frame* innermost_frame() const;
  bool something_startable_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool may_go_on_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool all_done_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  WorkItem* start_next_locked(QueueId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  WorkItem* choose_locked(const WorkList& items)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  size_t random_below_locked(size_t bound) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void recycle_locked(QueueId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  WorkItem* pop_abandoned() ABSL_LOCKS_EXCLUDED(mu_);

  static thread_local Frame* frames_;

  const bool random_order_;
  const size_t window_;

  mutable absl::Mutex mu_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  // A deque, because the lists inside may not move.
  std::deque<QueueState> queues_ ABSL_GUARDED_BY(mu_);
  std::vector<QueueId> free_ids_ ABSL_GUARDED_BY(mu_);
  QueueId turn_ ABSL_GUARDED_BY(mu_) = 0;
  size_t running_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

thread_local InlineExecutor::Core::Frame* InlineExecutor::Core::frames_ =
    nullptr;

InlineExecutor::Core::QueueId InlineExecutor::Core::add_queue(
    size_t max_workers) {
  absl::MutexLock lock(&mu_);
  QueueId id = queues_.size();
  if (free_ids_.empty()) {
    queues_.emplace_back();
  } else {
    id = free_ids_.back();
    free_ids_.pop_back();
    queues_[id].removed = false;
    queues_[id].counters = {};
  }
  queues_[id].cap = max_workers;
  return id;
}

void InlineExecutor::Core::remove_queue(QueueId id) {
  absl::MutexLock lock(&mu_);
  queues_[id].removed = true;
  recycle_locked(id);
}

void InlineExecutor::Core::recycle_locked(QueueId id) {
  QueueState& queue = queues_[id];
  if (!queue.removed || !queue.items.empty() || queue.active > 0) return;
  queue.removed = false;
  free_ids_.push_back(id);
}

size_t InlineExecutor::Core::submit(QueueId id,
                                    absl::Span<WorkItem* const> items) {
  absl::MutexLock lock(&mu_);
  if (stopping_) return 0;
  QueueState& queue = queues_[id];
  for (WorkItem* item : items) queue.items.push_back(item);
  queue.counters.submitted += items.size();
  return items.size();
}

bool InlineExecutor::Core::withdraw(QueueId id, WorkItem* item) {
  absl::MutexLock lock(&mu_);
  QueueState& queue = queues_[id];
  if (WorkList::holder(item) != &queue.items) return false;
  queue.items.remove(item);
  ++queue.counters.withdrawn;
  return true;
}

InlineExecutor::Core::Frame* InlineExecutor::Core::innermost_frame() const {
  Frame* frame = frames_;
  while (frame != nullptr && frame->core != this) frame = frame->outer;
  return frame;
}

bool InlineExecutor::Core::notify_after_batch(
    const std::shared_ptr<BatchNotification>& notification) const {
  Frame* const frame = innermost_frame();
  if (frame == nullptr) return false;
  auto& waiting = frame->notifications;
  if (std::find(waiting.begin(), waiting.end(), notification) ==
      waiting.end()) {
    waiting.push_back(notification);
  }
  return true;
}

WorkQueueCounters InlineExecutor::Core::counters(QueueId id) const {
  absl::MutexLock lock(&mu_);
  return queues_[id].counters;
}

bool InlineExecutor::Core::something_startable_locked() const {
  return std::any_of(queues_.begin(), queues_.end(),
                     [](const QueueState& queue) { return queue.startable(); });
}

bool InlineExecutor::Core::may_go_on_locked() const {
  return running_ == 0 || something_startable_locked();
}

bool InlineExecutor::Core::all_done_locked() const {
  return running_ == 0 && !something_startable_locked();
}

size_t InlineExecutor::Core::random_below_locked(size_t bound) {
  return std::uniform_int_distribution<size_t>(0, bound - 1)(random_);
}

WorkItem* InlineExecutor::Core::choose_locked(const WorkList& items) {
  WorkItem* item = items.front();
  if (!random_order_) return item;
  for (size_t i = random_below_locked(std::min(items.size(), window_)); i > 0;
       --i) {
    item = WorkList::after(item);
  }
  return item;
}

// Takes the item that goes next out of its queue; null if there is none.
WorkItem* InlineExecutor::Core::start_next_locked(QueueId& id) {
  const size_t count = queues_.size();
  if (count == 0) return nullptr;
  const QueueId first = random_order_ ? random_below_locked(count) : turn_;
  for (size_t i = 0; i < count; ++i) {
    id = (first + i) % count;
    QueueState& queue = queues_[id];
    if (!queue.startable()) continue;
    WorkItem* const item = choose_locked(queue.items);
    queue.items.remove(item);
    ++queue.active;
    ++queue.counters.ran;
    ++running_;
    turn_ = (id + 1) % count;
    return item;
  }
  return nullptr;
}

bool InlineExecutor::Core::run_one() {
  QueueId id = 0;
  WorkItem* item = nullptr;
  {
    absl::MutexLock lock(&mu_);
    item = start_next_locked(id);
  }
  if (item == nullptr) return false;
  Frame frame{.core = this, .outer = frames_, .notifications = {}};
  frames_ = &frame;
  item->run();
  frames_ = frame.outer;
  for (const auto& notification : frame.notifications)
    notification->batch_ended();
  absl::MutexLock lock(&mu_);
  --queues_[id].active;
  --running_;
  recycle_locked(id);
  return true;
}

void InlineExecutor::Core::stop(StopMode mode) {
  pool_check(!on_worker_thread(),
             "an item may not stop the executor that runs it");
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (mode == StopMode::kCancelQueued) {
    while (WorkItem* item = pop_abandoned()) item->abandon();
  }
  for (;;) {
    while (run_one()) {
    }
    // Other threads may be inside items, and hold a queue at its cap.
    absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(this, &Core::may_go_on_locked));
    if (all_done_locked()) return;
  }
}

WorkItem* InlineExecutor::Core::pop_abandoned() {
  absl::MutexLock lock(&mu_);
  for (QueueId id = 0; id < queues_.size(); ++id) {
    WorkItem* const item = queues_[id].items.pop_front();
    if (item == nullptr) continue;
    ++queues_[id].counters.abandoned;
    recycle_locked(id);
    return item;
  }
  return nullptr;
}

// What an embedder holds of a queue.
class InlineExecutor::Queue final : public WorkQueue {
 public:
  Queue(std::shared_ptr<Core> core, const ForkGuard& fork_guard,
        const WorkQueueOptions& options)
      : fork_guard_(fork_guard),
        core_(std::move(core)),
        options_(options),
        id_(core_->add_queue(options.max_workers)) {}

  ~Queue() override {
    if (!fork_guard_.crossed_fork()) core_->remove_queue(id_);
  }

  bool submit(WorkItem* item) override { return submit_batch({&item, 1}) == 1; }

  size_t submit_batch(absl::Span<WorkItem* const> items) override {
    return fork_guard_.crossed_fork() ? 0 : core_->submit(id_, items);
  }

  bool withdraw(WorkItem* item) override {
    // In a forked process nobody is going to start what is in a list.
    if (fork_guard_.crossed_fork()) return WorkList::holder(item) != nullptr;
    return core_->withdraw(id_, item);
  }

  bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification) override {
    return core_->notify_after_batch(notification);
  }

  WorkQueueCounters counters() const override {
    return fork_guard_.crossed_fork() ? WorkQueueCounters{}
                                      : core_->counters(id_);
  }

  // Without threads, everything takes turns.
  std::shared_ptr<WorkQueue> make_turn_queue() override {
    return std::make_shared<Queue>(core_, fork_guard_, options_);
  }

 private:
  const ForkGuard fork_guard_;
  const std::shared_ptr<Core> core_;
  const WorkQueueOptions options_;
  const Core::QueueId id_;
};

InlineExecutor::InlineExecutor(const InlineExecutorOptions& options)
    : core_(std::make_shared<Core>(options)) {}

InlineExecutor::~InlineExecutor() { stop(StopMode::kRunQueued); }

std::shared_ptr<WorkQueue> InlineExecutor::make_queue(
    const WorkQueueOptions& options) {
  return std::make_shared<Queue>(core_, fork_guard_, options);
}

bool InlineExecutor::run_one() {
  return !fork_guard_.crossed_fork() && core_->run_one();
}

bool InlineExecutor::on_worker_thread() const {
  return core_->on_worker_thread();
}

void InlineExecutor::stop(StopMode mode) {
  if (!fork_guard_.crossed_fork()) core_->stop(mode);
}

}  // namespace spindle

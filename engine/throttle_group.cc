#include "engine/throttle_group.h"

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace spindle {
namespace {

absl::Status invalid(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(name, " ", what));
}

absl::Status check_bucket(absl::string_view name, const BucketLimit& limit) {
  constexpr uint64_t kMax = ThrottleLimits::kMaxRate;
  if (limit.average > kMax || limit.max > kMax) {
    return invalid(name, absl::StrCat("is ", std::max(limit.average, limit.max),
                                      ", more than the limit of ", kMax));
  }
  if (limit.burst_length_seconds == 0)
    return invalid(name, "has a burst length of 0");
  if (limit.burst_length_seconds > 1 && limit.max == 0)
    return invalid(name, "has a burst length but no burst rate");
  if (limit.max != 0 && limit.burst_length_seconds > kMax / limit.max) {
    return invalid(
        name, absl::StrCat("has a burst length, ", limit.burst_length_seconds,
                           ", too high for its burst rate"));
  }
  if (limit.max != 0 && limit.average == 0)
    return invalid(name, "has a burst rate but no rate");
  if (limit.max != 0 && limit.max < limit.average) {
    return invalid(name,
                   absl::StrCat("has a burst rate, ", limit.max,
                                ", lower than its rate, ", limit.average));
  }
  return absl::OkStatus();
}

absl::Status check_total(absl::string_view name, const BucketLimit& total,
                         const BucketLimit& read, const BucketLimit& write) {
  if ((total.average != 0 && (read.average != 0 || write.average != 0)) ||
      (total.max != 0 && (read.max != 0 || write.max != 0))) {
    return invalid(name,
                   "of all requests and of reads or writes cannot be limited "
                   "at the same time");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ThrottleLimits::check() const {
  const struct {
    absl::string_view name;
    const BucketLimit& limit;
  } rows[] = {{"iops-total", iops_total}, {"iops-read", iops_read},
              {"iops-write", iops_write}, {"bps-total", bps_total},
              {"bps-read", bps_read},     {"bps-write", bps_write}};
  for (const auto& row : rows) {
    if (absl::Status status = check_bucket(row.name, row.limit); !status.ok())
      return status;
  }
  absl::Status status = check_total("iops", iops_total, iops_read, iops_write);
  if (status.ok()) status = check_total("bps", bps_total, bps_read, bps_write);
  if (status.ok() && iops_size_bytes != 0 && iops_total.average == 0 &&
      iops_read.average == 0 && iops_write.average == 0) {
    return invalid("iops-size", "requires a limit on iops");
  }
  return status;
}

ThrottleGroup::ThrottleGroup(const ThrottleLimits& limits)
    : ThrottleGroup(limits, Clock{}) {}

ThrottleGroup::ThrottleGroup(const ThrottleLimits& limits, Clock clock)
    : limits_(limits),
      clock_(std::move(clock)),
      leaked_until_(now()),
      operations_{LeakyBucket(limits.iops_total), LeakyBucket(limits.iops_read),
                  LeakyBucket(limits.iops_write)},
      bytes_{LeakyBucket(limits.bps_total), LeakyBucket(limits.bps_read),
             LeakyBucket(limits.bps_write)} {}

ThrottleGroup::~ThrottleGroup() {
  {
    absl::MutexLock lock(&mutex_);
    ABSL_ASSERT(queues_[0].empty() && queues_[1].empty());
    stopping_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Time ThrottleGroup::now() const {
  if (clock_.now != nullptr) return clock_.now();
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::TimeFromTimespec(now);
}

// ---- The buckets ------------------------------------------------------------

void ThrottleGroup::leak_locked() {
  const absl::Time current = now();
  if (current <= leaked_until_) return;  // clocks may be set back
  const absl::Duration passed = current - leaked_until_;
  for (LeakyBucket& bucket : operations_) bucket.leak(passed);
  for (LeakyBucket& bucket : bytes_) bucket.leak(passed);
  leaked_until_ = current;
}

absl::Duration ThrottleGroup::wait_locked(Direction direction) {
  const size_t own = 1 + static_cast<size_t>(direction);
  return std::max({operations_[0].wait(), operations_[own].wait(),
                   bytes_[0].wait(), bytes_[own].wait()});
}

void ThrottleGroup::account_locked(Direction direction, uint64_t bytes) {
  const size_t own = 1 + static_cast<size_t>(direction);
  const double amount = static_cast<double>(bytes);
  double operations = 1;
  if (limits_.iops_size_bytes != 0 && bytes > limits_.iops_size_bytes)
    operations = amount / static_cast<double>(limits_.iops_size_bytes);
  for (const size_t i : {size_t{0}, own}) {
    operations_[i].add(operations);
    bytes_[i].add(amount);
  }
}

// ---- The queues -------------------------------------------------------------

bool ThrottleGroup::admit_locked(const Entry& entry, Direction direction) {
  leak_locked();
  const bool shared = operations_[0].is_limited() || bytes_[0].is_limited();
  const bool overtakes =
      !queue_locked(direction).empty() ||
      (shared && (!queues_[0].empty() || !queues_[1].empty()));
  if (overtakes || wait_locked(direction) > absl::ZeroDuration()) return false;
  account_locked(direction, entry.bytes);
  return true;
}

bool ThrottleGroup::take_one_locked(Direction direction, Due* due,
                                    absl::Duration* wait) {
  Queue& queue = queue_locked(direction);
  while (!queue.empty()) {
    const absl::Duration left = wait_locked(direction);
    if (left > absl::ZeroDuration()) {
      *wait = std::min(*wait, left);
      return false;
    }
    const Entry entry = queue.front();
    if (!entry.waiter->claim_throttled()) {  // its canceller will forget it
      queue.pop_front();
      continue;
    }
    due->splice(due->end(), queue, queue.begin());
    account_locked(direction, entry.bytes);
    return true;
  }
  return false;
}

absl::Duration ThrottleGroup::take_due_locked(Due* due) {
  leak_locked();
  absl::Duration wait = absl::InfiniteDuration();
  for (int idle = 0; idle < 2;) {
    const Direction direction = next_;
    next_ =
        direction == Direction::kRead ? Direction::kWrite : Direction::kRead;
    idle = take_one_locked(direction, due, &wait) ? 0 : idle + 1;
    if (idle == 0) wait = absl::InfiniteDuration();
  }
  if (!due->empty()) ++starting_;
  return wait;
}

void ThrottleGroup::start(Due* due) {
  if (due->empty()) return;
  for (const Entry& entry : *due) entry.waiter->start_throttled();
  due->clear();
  absl::MutexLock lock(&mutex_);
  --starting_;
}

absl::Duration ThrottleGroup::run_due() {
  Due due;
  absl::Duration next;
  {
    absl::MutexLock lock(&mutex_);
    next = take_due_locked(&due);
  }
  start(&due);
  return next;
}

size_t ThrottleGroup::waiting_count() const {
  absl::MutexLock lock(&mutex_);
  return queues_[0].size() + queues_[1].size();
}

// ---- The thread -------------------------------------------------------------

void ThrottleGroup::note_change_locked() {
  ++changes_;
  changed_.SignalAll();
}

void ThrottleGroup::need_thread_locked() {
  note_change_locked();
  if (clock_.now != nullptr || thread_.joinable()) return;
  // Signals are for the embedder's own threads.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run_thread(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ThrottleGroup::run_thread() {
  for (;;) {
    uint64_t seen = 0;
    {
      absl::MutexLock lock(&mutex_);
      seen = changes_;
    }
    const absl::Duration wait = run_due();
    absl::MutexLock lock(&mutex_);
    if (!stopping_ && changes_ == seen) changed_.WaitWithTimeout(&mutex_, wait);
    if (stopping_) return;
  }
}

// ---- Members ----------------------------------------------------------------

ThrottleGroup::Member::Member(std::shared_ptr<ThrottleGroup> group)
    : group_(std::move(group)) {
  ABSL_ASSERT(group_ != nullptr);
}

ThrottleGroup::Member::~Member() {
  ThrottleGroup& group = *group_;
  const auto idle = [&group]() ABSL_SHARED_LOCKS_REQUIRED(group.mutex_) {
    return group.starting_ == 0;
  };
  absl::MutexLock lock(&group.mutex_);
  group.mutex_.Await(absl::Condition(&idle));
}

bool ThrottleGroup::Member::admit_or_queue(Waiter* waiter, Direction direction,
                                           uint64_t bytes) {
  ThrottleGroup& group = *group_;
  const Entry entry{waiter, this, bytes};
  absl::MutexLock lock(&group.mutex_);
  if (drains_ > 0 || group.admit_locked(entry, direction)) return true;
  group.queue_locked(direction).push_back(entry);
  group.need_thread_locked();
  return false;
}

void ThrottleGroup::Member::forget(Waiter* waiter) {
  ThrottleGroup& group = *group_;
  absl::MutexLock lock(&group.mutex_);
  for (Queue& queue : group.queues_) {
    queue.remove_if(
        [waiter](const Entry& entry) { return entry.waiter == waiter; });
  }
  // What stood behind it may be sooner due.
  group.note_change_locked();
}

namespace {

// A caller that waits on its own thread.
class HereWaiter final : public ThrottleGroup::Waiter {
 public:
  bool claim_throttled() override { return true; }
  void start_throttled() override {
    absl::MutexLock lock(&mutex_);
    started_ = true;
  }
  bool wait(absl::Duration timeout) {
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&started_), timeout);
  }

 private:
  absl::Mutex mutex_;
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void ThrottleGroup::Member::wait_here(Direction direction, uint64_t bytes) {
  ThrottleGroup& group = *group_;
  HereWaiter waiter;
  {
    const Entry entry{&waiter, this, bytes};
    absl::MutexLock lock(&group.mutex_);
    if (drains_ > 0 || group.admit_locked(entry, direction)) return;
    group.queue_locked(direction).push_back(entry);
  }
  while (!waiter.wait(group.run_due())) {
  }
}

void ThrottleGroup::Member::begin_drain() {
  ThrottleGroup& group = *group_;
  Due due;
  {
    absl::MutexLock lock(&group.mutex_);
    ++drains_;
    for (Queue& queue : group.queues_) {
      for (auto it = queue.begin(); it != queue.end();) {
        const auto entry = it++;
        if (entry->member != this) continue;
        if (entry->waiter->claim_throttled()) {
          due.splice(due.end(), queue, entry);
        } else {
          queue.erase(entry);
        }
      }
    }
    if (!due.empty()) ++group.starting_;
    group.note_change_locked();
  }
  group.start(&due);
}

void ThrottleGroup::Member::end_drain() {
  absl::MutexLock lock(&group_->mutex_);
  --drains_;
}

}  // namespace spindle

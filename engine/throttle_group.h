// ThrottleGroup: limits on operations and bytes per second, for one device or
// several together.
//
// Requests of one direction (reads, or everything that changes data) start in
// order of arrival; the two directions take turns where they share a limit.  A
// request that must wait is a Waiter in a list: it holds no thread.  Whoever
// waits on its own thread (wait_here) is its own clock and, while it waits,
// everybody's; for the others the group has a thread of its own, which begins
// with the first Waiter that needs it.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_ENGINE_THROTTLE_GROUP_H_
#define SPINDLE_ENGINE_THROTTLE_GROUP_H_

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/leaky_bucket.h"

namespace spindle {

// As QEMU's throttle-group has them.
struct ThrottleLimits {
  BucketLimit iops_total;
  BucketLimit iops_read;
  BucketLimit iops_write;
  BucketLimit bps_total;
  BucketLimit bps_read;
  BucketLimit bps_write;
  // A request of more bytes counts as several operations; 0: as one.
  uint64_t iops_size_bytes = 0;
  bool operator==(const ThrottleLimits&) const = default;

  static constexpr uint64_t kMaxRate = 1'000'000'000'000'000;
  // Errors: kInvalidArgument names the limit that makes no sense.
  absl::Status check() const;
};

class ThrottleGroup {
 public:
  enum class Direction { kRead, kWrite };

  // A request that may have to wait.  Owned by its user, and alive until
  // start_throttled() was entered or forget() has returned.
  class Waiter {
   public:
    // Under the group's mutex: takes the request for its start, or returns
    // false if its canceller has it.  Must do no more than that.
    virtual bool claim_throttled() = 0;
    // Then, without it: the request starts.  Must not block.
    virtual void start_throttled() = 0;

   protected:
    ~Waiter() = default;
  };

  // A user of the group: what it lets go on early, and waits for, in the end.
  class Member {
   public:
    // REQUIRES: group != nullptr.
    explicit Member(std::shared_ptr<ThrottleGroup> group);
    // Waits until nothing of the group is being started.  REQUIRES: nothing of
    // this member waits.
    ~Member();
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;

    // True: the request may start now.  False: start_throttled() follows, and
    // the caller must not touch it any more.
    bool admit_or_queue(Waiter* waiter, Direction direction, uint64_t bytes);
    // The canceller has claimed `waiter`.
    void forget(Waiter* waiter);
    // Returns when the request may start.
    void wait_here(Direction direction, uint64_t bytes);
    // While somebody drains, nothing of this member waits.
    void begin_drain();
    void end_drain();

   private:
    friend class ThrottleGroup;
    const std::shared_ptr<ThrottleGroup> group_;
    int drains_ = 0;  // guarded by group_->mutex_
  };

  // For tests: the time, and no thread.
  struct Clock {
    std::function<absl::Time()> now = nullptr;
  };

  // REQUIRES: limits.check().ok().
  explicit ThrottleGroup(const ThrottleLimits& limits);
  ThrottleGroup(const ThrottleLimits& limits, Clock clock);
  ~ThrottleGroup();
  ThrottleGroup(const ThrottleGroup&) = delete;
  ThrottleGroup& operator=(const ThrottleGroup&) = delete;

  const ThrottleLimits& limits() const { return limits_; }
  // Starts what may start; returns how long it is until more may.  For tests.
  absl::Duration run_due() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t waiting_count() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  static constexpr size_t kDirections = 2;
  struct Entry {
    Waiter* waiter;
    const Member* member;
    uint64_t bytes;
  };
  using Queue = std::list<Entry>;
  using Due = std::list<Entry>;

  // Not of the wall's clock, which may be set back.
  absl::Time now() const;
  Queue& queue_locked(Direction direction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queues_[static_cast<size_t>(direction)];
  }
  void leak_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Duration wait_locked(Direction direction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void account_locked(Direction direction, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes what may start now; returns how long it is until more may.
  absl::Duration take_due_locked(Due* due)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of one direction: true if one was taken.
  bool take_one_locked(Direction direction, Due* due, absl::Duration* wait)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool admit_locked(const Entry& entry, Direction direction)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void start(Due* due) ABSL_LOCKS_EXCLUDED(mutex_);
  void note_change_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void need_thread_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void run_thread() ABSL_LOCKS_EXCLUDED(mutex_);

  const ThrottleLimits limits_;
  const Clock clock_;

  // A leaf: nothing is acquired while it is held.
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  absl::Time leaked_until_ ABSL_GUARDED_BY(mutex_);
  // Total, then by direction.
  std::array<LeakyBucket, 1 + kDirections> operations_ ABSL_GUARDED_BY(mutex_);
  std::array<LeakyBucket, 1 + kDirections> bytes_ ABSL_GUARDED_BY(mutex_);
  std::array<Queue, kDirections> queues_ ABSL_GUARDED_BY(mutex_);
  Direction next_ ABSL_GUARDED_BY(mutex_) = Direction::kRead;
  // Threads that are inside start().
  int starting_ ABSL_GUARDED_BY(mutex_) = 0;
  // How often something changed that the thread must look at.
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Made under mutex_, joined by the destructor.
  std::thread thread_;
};

// Implemented by drivers that throttle.  Who takes the limits over asks the
// group before each request, and the driver itself no more.
class ThrottleSource {
 public:
  virtual std::shared_ptr<ThrottleGroup> take_over_throttle() = 0;

 protected:
  ~ThrottleSource() = default;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_THROTTLE_GROUP_H_

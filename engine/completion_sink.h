// CompletionSink: the receiving half of a CompletionQueue.
//
// Finished requests are pushed onto a lock-free stack; a consumer takes the
// whole stack at once and puts it back into order.  Nobody is woken unless
// somebody sleeps, or has armed the eventfd, and then once for a whole batch of
// the pool where the pool can tell when a batch ends.
//
// Owns (one reference to) the requests in it.  Shared by the queue and the
// devices that push to it.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_ENGINE_COMPLETION_SINK_H_
#define SPINDLE_ENGINE_COMPLETION_SINK_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/aio.h"
#include "threadpool/executor.h"

namespace spindle {

class CompletionSink final : public BatchNotification {
 public:
  // `counts_outstanding`: outstanding() will be asked for.
  // Errors: kResourceExhausted if no eventfd can be had.
  static absl::StatusOr<std::shared_ptr<CompletionSink>> create(
      bool counts_outstanding = false);
  ~CompletionSink() override;
  CompletionSink(const CompletionSink&) = delete;
  CompletionSink& operator=(const CompletionSink&) = delete;

  // A request without a callback was submitted, and will be pushed.
  void expect() {
    if (counts_outstanding_)
      outstanding_.fetch_add(1, std::memory_order_relaxed);
  }
  // Hands finished requests over, oldest first, with one reference to each; a
  // consumer gets all of them or none.  `batch_queue`, if not null, is the
  // queue whose worker calls: it may wake the consumer later.  `self` is this
  // sink. REQUIRES: there is one.
  void push(absl::Span<AioRequest* const> requests, WorkQueue* batch_queue,
            const std::shared_ptr<BatchNotification>& self);
  // BatchNotification.
  void batch_ended() override { wake(); }

  // ---- For the consumer ----------------------------------------------------

  // Moves all callbacks and up to `max_plain` other requests, oldest first, to
  // the lists, whose owner then owns them.
  void take(size_t max_plain, RequestList* plain, RequestList* callbacks)
      ABSL_LOCKS_EXCLUDED(consumer_mutex_);
  // How many requests without a callback were submitted and not taken; 0 if
  // nobody counts.
  size_t outstanding() const {
    return outstanding_.load(std::memory_order_relaxed);
  }
  // False if take() would find nothing; may be wrong if somebody pushes or
  // takes meanwhile.
  bool may_have_something() const;
  // Or if the descriptor is readable, and take() may make it unreadable.
  bool should_take() const;
  // Sleeps until something was pushed, or until `deadline`.
  void sleep(absl::Time deadline);
  // From now on the descriptor is kept up to date.
  int event_fd() ABSL_LOCKS_EXCLUDED(consumer_mutex_);

  // ---- Executors without threads -------------------------------------------

  // Whoever waits here runs their work.  Each add is matched by a remove, which
  // waits until nobody is inside the executor.
  void add_helper(Executor* executor) ABSL_LOCKS_EXCLUDED(helpers_mutex_);
  void remove_helper(Executor* executor) ABSL_LOCKS_EXCLUDED(helpers_mutex_);
  bool has_helpers() const {
    return has_helpers_.load(std::memory_order_acquire);
  }
  // Runs one queued item; false if there was none.
  bool help() ABSL_LOCKS_EXCLUDED(helpers_mutex_);

 private:
  // The descriptor's life.  Between kArmed and kSignalled one producer writes
  // to it; nobody else touches it then.
  enum class Bell : uint32_t {
    kUnused,      // nobody has asked for the descriptor
    kArmed,       // not readable; the next push signals
    kSignalling,  // about to become readable
    kSignalled,   // readable
  };
  struct Helper {
    Executor* executor;
    size_t users;
  };

  CompletionSink(int event_fd, bool counts_outstanding)
      : event_fd_(event_fd), counts_outstanding_(counts_outstanding) {}

  bool somebody_listens() const;
  void wake();
  void ring();
  void rearm_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(consumer_mutex_);
  void collect_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(consumer_mutex_);

  const int event_fd_;
  const bool counts_outstanding_;
  std::atomic<size_t> outstanding_{0};
  alignas(64) std::atomic<AioRequest*> newest_{nullptr};
  // 1 while somebody may be asleep on it (a futex word).
  alignas(64) std::atomic<uint32_t> sleeping_{0};
  std::atomic<Bell> bell_{Bell::kUnused};
  std::atomic<bool> has_ready_{false};

  // Held for a few instructions; nothing is acquired while it is held.
  absl::Mutex consumer_mutex_;
  // Taken off the stack and not yet reaped, oldest first.
  RequestList ready_plain_ ABSL_GUARDED_BY(consumer_mutex_);
  RequestList ready_callbacks_ ABSL_GUARDED_BY(consumer_mutex_);

  std::atomic<bool> has_helpers_{false};
  // A leaf: an executor is called with it released.
  absl::Mutex helpers_mutex_;
  std::vector<Helper> helpers_ ABSL_GUARDED_BY(helpers_mutex_);
  int helping_ ABSL_GUARDED_BY(helpers_mutex_) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_COMPLETION_SINK_H_

#include "engine/completion_sink.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "engine/errors.h"

namespace spindle {
namespace {

void futex_wait(std::atomic<uint32_t>* word, uint32_t expected,
                const timespec* timeout) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT_PRIVATE,
          expected, timeout, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE_PRIVATE,
          INT_MAX, nullptr, nullptr, 0);
}

// An item on the way from one list to the other.
size_t move_all(RequestList* from, RequestList* to, size_t max) {
  size_t moved = 0;
  for (; moved < max && !from->empty(); ++moved)
    to->push_back(from->pop_front());
  return moved;
}

}  // namespace

absl::StatusOr<std::shared_ptr<CompletionSink>> CompletionSink::create(
    bool counts_outstanding) {
  const int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (fd < 0) {
    // Whatever the reason, what is missing is a descriptor.
    const absl::Status failed = errno_status(errno, "eventfd");
    return absl::ResourceExhaustedError(failed.message());
  }
  return std::shared_ptr<CompletionSink>(
      new CompletionSink(fd, counts_outstanding));
}

CompletionSink::~CompletionSink() {
  // Nobody is left to reap; callbacks have run (see CompletionQueue).
  RequestList plain;
  RequestList callbacks;
  take(SIZE_MAX, &plain, &callbacks);
  while (AioRequest* request = plain.pop_front()) request->drop_reference();
  while (AioRequest* request = callbacks.pop_front()) request->drop_reference();
  close(event_fd_);
}

// A consumer that goes to sleep, or arms the descriptor, says so and then looks
// at newest_ once more; a producer changes newest_ and then looks whether
// somebody listens.  All four are sequentially consistent, so one of them sees
// the other.
void CompletionSink::push(absl::Span<AioRequest* const> requests,
                          WorkQueue* batch_queue,
                          const std::shared_ptr<BatchNotification>& self) {
  for (size_t i = 1; i < requests.size(); ++i)
    requests[i]->next_ = requests[i - 1];
  AioRequest* const oldest = requests.front();
  AioRequest* const newest = requests.back();
  AioRequest* older = newest_.load(std::memory_order_relaxed);
  do {
    oldest->next_ = older;
  } while (!newest_.compare_exchange_weak(
      older, newest, std::memory_order_seq_cst, std::memory_order_relaxed));
  if (!somebody_listens()) return;
  if (batch_queue != nullptr && batch_queue->notify_after_batch(self)) return;
  wake();
}

bool CompletionSink::somebody_listens() const {
  return sleeping_.load(std::memory_order_seq_cst) != 0 ||
         bell_.load(std::memory_order_seq_cst) == Bell::kArmed;
}

void CompletionSink::wake() {
  if (sleeping_.load(std::memory_order_seq_cst) != 0 &&
      sleeping_.exchange(0, std::memory_order_seq_cst) != 0) {
    futex_wake_all(&sleeping_);
  }
  ring();
}

void CompletionSink::ring() {
  Bell armed = Bell::kArmed;
  if (!bell_.compare_exchange_strong(armed, Bell::kSignalling,
                                     std::memory_order_seq_cst))
    return;
  // Cannot fail: the counter is 0.
  (void)eventfd_write(event_fd_, 1);
  bell_.store(Bell::kSignalled, std::memory_order_seq_cst);
}

// The descriptor must be readable while there is something, and should not be
// when there is nothing.
void CompletionSink::rearm_locked() {
  const bool something = !ready_plain_.empty() || !ready_callbacks_.empty();
  switch (bell_.load(std::memory_order_seq_cst)) {
    case Bell::kUnused:
    case Bell::kSignalling:  // one reap too many will find out
      return;
    case Bell::kArmed:
      break;
    case Bell::kSignalled:
      if (something) return;
      eventfd_t count = 0;
      (void)eventfd_read(event_fd_, &count);
      bell_.store(Bell::kArmed, std::memory_order_seq_cst);
      break;
  }
  if (something || newest_.load(std::memory_order_seq_cst) != nullptr) ring();
}

int CompletionSink::event_fd() {
  absl::MutexLock lock(&consumer_mutex_);
  Bell unused = Bell::kUnused;
  if (bell_.compare_exchange_strong(unused, Bell::kArmed,
                                    std::memory_order_seq_cst)) {
    rearm_locked();
  }
  return event_fd_;
}

void CompletionSink::collect_locked() {
  if (newest_.load(std::memory_order_relaxed) == nullptr) return;
  AioRequest* request = newest_.exchange(nullptr, std::memory_order_seq_cst);
  // From newest to oldest; what arrived before stands in front.
  RequestList plain;
  RequestList callbacks;
  while (request != nullptr) {
    AioRequest* const older = request->next_;
    (request->has_callback() ? callbacks : plain).push_front(request);
    request = older;
  }
  move_all(&plain, &ready_plain_, SIZE_MAX);
  move_all(&callbacks, &ready_callbacks_, SIZE_MAX);
}

void CompletionSink::take(size_t max_plain, RequestList* plain,
                          RequestList* callbacks) {
  absl::MutexLock lock(&consumer_mutex_);
  collect_locked();
  const size_t taken = move_all(&ready_plain_, plain, max_plain);
  if (counts_outstanding_)
    outstanding_.fetch_sub(taken, std::memory_order_relaxed);
  move_all(&ready_callbacks_, callbacks, SIZE_MAX);
  has_ready_.store(!ready_plain_.empty(), std::memory_order_relaxed);
  if (bell_.load(std::memory_order_relaxed) != Bell::kUnused) rearm_locked();
}

bool CompletionSink::may_have_something() const {
  return newest_.load(std::memory_order_seq_cst) != nullptr ||
         has_ready_.load(std::memory_order_relaxed);
}

bool CompletionSink::should_take() const {
  return may_have_something() ||
         bell_.load(std::memory_order_relaxed) == Bell::kSignalled;
}

void CompletionSink::sleep(absl::Time deadline) {
  for (;;) {
    // Never taken back: another sleeper may rely on it.  At worst, a later push
    // wakes nobody.
    sleeping_.store(1, std::memory_order_seq_cst);
    if (may_have_something()) return;
    if (deadline == absl::InfiniteFuture()) {
      futex_wait(&sleeping_, 1, nullptr);
    } else {
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) return;
      const timespec timeout = absl::ToTimespec(left);
      futex_wait(&sleeping_, 1, &timeout);
    }
  }
}

void CompletionSink::add_helper(Executor* executor) {
  absl::MutexLock lock(&helpers_mutex_);
  has_helpers_.store(true, std::memory_order_release);
  for (Helper& helper : helpers_) {
    if (helper.executor != executor) continue;
    ++helper.users;
    return;
  }
  helpers_.push_back({executor, 1});
}

void CompletionSink::remove_helper(Executor* executor) {
  absl::MutexLock lock(&helpers_mutex_);
  const auto found = std::find_if(
      helpers_.begin(), helpers_.end(),
      [executor](const Helper& each) { return each.executor == executor; });
  if (found == helpers_.end() || --found->users > 0) return;
  helpers_.erase(found);
  has_helpers_.store(!helpers_.empty(), std::memory_order_release);
  helpers_mutex_.Await(
      absl::Condition(+[](int* helping) { return *helping == 0; }, &helping_));
}

bool CompletionSink::help() {
  if (!has_helpers()) return false;
  absl::InlinedVector<Executor*, 8> executors;
  {
    absl::MutexLock lock(&helpers_mutex_);
    for (const Helper& helper : helpers_) executors.push_back(helper.executor);
    ++helping_;
  }
  bool helped = false;
  for (Executor* executor : executors) {
    helped = executor->run_one();
    if (helped) break;
  }
  absl::MutexLock lock(&helpers_mutex_);
  --helping_;
  return helped;
}

}  // namespace spindle

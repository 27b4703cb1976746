// CompletionQueue: where an event loop picks up finished requests.
//
// Several devices may share one.  A file descriptor becomes readable when there
// is something to reap; the loop then reaps in batches.  Where there are no
// threads, wait() and reap() are also where the queued work itself runs.
//
// A completion never runs inside the call that submitted or cancelled it, and
// never under an engine lock.
//
// Thread safety: completions arrive from any thread; any thread may reap, one
// at a time is the usual case.
#ifndef SPINDLE_ENGINE_COMPLETION_QUEUE_H_
#define SPINDLE_ENGINE_COMPLETION_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace spindle {

class Executor;
class CompletionSink;  // the receiving half, known to aio.cc

// One finished request.
struct Completion {
  uint64_t user_data = 0;  // as given when it was submitted
  absl::Status status;     // kCancelled if it was withdrawn
};

struct CompletionQueueOptions {
  // How long wait() may look for completions before it sleeps: that saves a
  // wake-up per request, and costs the CPU time.  Only while fewer requests are
  // outstanding than there are processors, so that the processor is not one
  // that a worker could use.  0: sleep at once.
  absl::Duration poll_limit = absl::ZeroDuration();
};

class CompletionQueue {
 public:
  // Errors: kResourceExhausted if no eventfd can be had.
  static absl::StatusOr<std::unique_ptr<CompletionQueue>> create(
      const CompletionQueueOptions& options);
  // Runs the callbacks that nobody reaped.  Devices that use it must be
  // destroyed first.
  ~CompletionQueue();
  CompletionQueue(const CompletionQueue&) = delete;
  CompletionQueue& operator=(const CompletionQueue&) = delete;

  // An eventfd (non-blocking, close-on-exec) that is readable while there may
  // be something to reap.  Owned by the queue.  reap() re-arms it: an event
  // loop need not read from it.
  int event_fd() const;

  // Moves up to out.size() completions, oldest first, into `out` and returns
  // how many; never blocks on threads.  Completions that carry a callback run
  // it here instead (outside all locks) and do not appear in `out`, but count
  // in `callbacks_run` if that is not null.
  size_t reap(absl::Span<Completion> out, size_t* callbacks_run = nullptr);

  // Like reap(), but waits until at least `at_least` completions (callbacks
  // included) were reaped or `timeout` is over.
  // REQUIRES: at_least <= out.size().
  size_t wait(size_t at_least, absl::Duration timeout,
              absl::Span<Completion> out, size_t* callbacks_run = nullptr);

  // For BlockDevice.
  const std::shared_ptr<CompletionSink>& sink() const { return sink_; }

 private:
  CompletionQueue(std::shared_ptr<CompletionSink> sink,
                  const CompletionQueueOptions& options);

  const std::shared_ptr<CompletionSink> sink_;
  const CompletionQueueOptions options_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_COMPLETION_QUEUE_H_

#include "engine/completion_queue.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "engine/aio.h"
#include "engine/completion_sink.h"

namespace spindle {
namespace {

// How many queued items one reap() runs where there are no threads, if `out`
// does not say.
constexpr size_t kItemsPerReap = 64;
// How often wait() looks at the clock while it looks for completions.
constexpr int kLooksPerClock = 32;
// Where there are no threads, somebody else may queue work while this thread
// sleeps, and nobody says so.
constexpr absl::Duration kLookAgain = absl::Milliseconds(1);

inline void relax_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

struct Reaped {
  size_t plain = 0;
  size_t callbacks = 0;
  size_t both() const { return plain + callbacks; }
};

Reaped reap_finished(CompletionSink* sink, absl::Span<Completion> out) {
  Reaped reaped;
  if (!sink->should_take()) return reaped;
  RequestList plain;
  RequestList callbacks;
  sink->take(out.size(), &plain, &callbacks);
  while (AioRequest* request = plain.pop_front()) {
    out[reaped.plain].user_data = request->user_data;
    out[reaped.plain].status = std::move(request->status);
    ++reaped.plain;
    request->drop_reference();
  }
  while (AioRequest* request = callbacks.pop_front()) {
    request->run_callback(/*counted=*/false);
    request->drop_reference();
    ++reaped.callbacks;
  }
  return reaped;
}

// Looks for completions without sleeping, for as long as the options allow.
void poll(const CompletionSink& sink, absl::Duration limit) {
  static const size_t processors = std::thread::hardware_concurrency();
  if (limit <= absl::ZeroDuration() || sink.outstanding() >= processors) return;
  const absl::Time end = absl::Now() + limit;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (sink.may_have_something()) return;
      relax_cpu();
    }
  } while (absl::Now() < end);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CompletionQueue>> CompletionQueue::create(
    const CompletionQueueOptions& options) {
  absl::StatusOr<std::shared_ptr<CompletionSink>> sink =
      CompletionSink::create(options.poll_limit > absl::ZeroDuration());
  if (!sink.ok()) return sink.status();
  return std::unique_ptr<CompletionQueue>(
      new CompletionQueue(*std::move(sink), options));
}

CompletionQueue::CompletionQueue(std::shared_ptr<CompletionSink> sink,
                                 const CompletionQueueOptions& options)
    : sink_(std::move(sink)), options_(options) {}

// Each request completes exactly once, also where nobody reaped it: its
// callback runs here.
CompletionQueue::~CompletionQueue() {
  while (reap_finished(sink_.get(), {}).callbacks > 0) continue;
}

int CompletionQueue::event_fd() const { return sink_->event_fd(); }

size_t CompletionQueue::reap(absl::Span<Completion> out,
                             size_t* callbacks_run) {
  if (callbacks_run != nullptr) *callbacks_run = 0;
  if (sink_->has_helpers()) {
    const size_t items = out.empty() ? kItemsPerReap : out.size();
    for (size_t i = 0; i < items && sink_->help(); ++i) continue;
  }
  const Reaped reaped = reap_finished(sink_.get(), out);
  if (callbacks_run != nullptr) *callbacks_run = reaped.callbacks;
  return reaped.plain;
}

size_t CompletionQueue::wait(size_t at_least, absl::Duration timeout,
                             absl::Span<Completion> out,
                             size_t* callbacks_run) {
  Reaped all;
  absl::Time deadline = absl::InfinitePast();
  for (;;) {
    size_t callbacks = 0;
    all.plain += reap(out.subspan(all.plain), &callbacks);
    all.callbacks += callbacks;
    if (all.both() >= at_least) break;
    // The clock is asked only by those that must wait.
    if (deadline == absl::InfinitePast()) deadline = absl::Now() + timeout;
    const bool helped = sink_->help();
    if (!helped && !sink_->may_have_something()) {
      if (absl::Now() >= deadline) break;
      poll(*sink_, std::min(options_.poll_limit, timeout));
      sink_->sleep(sink_->has_helpers()
                       ? std::min(deadline, absl::Now() + kLookAgain)
                       : deadline);
    }
  }
  if (callbacks_run != nullptr) *callbacks_run = all.callbacks;
  return all.plain;
}

}  // namespace spindle

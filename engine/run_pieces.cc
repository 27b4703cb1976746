#include "engine/run_pieces.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {
namespace {

class Helper;

// What the caller and its helpers share; lives on the caller's stack.
struct Work {
  Work(size_t piece_count, absl::FunctionRef<void(size_t)> run_piece)
      : count(piece_count), piece(run_piece) {}

  void run_some() {
    for (size_t i = next.fetch_add(1); i < count; i = next.fetch_add(1))
      piece(i);
  }

  const size_t count;
  const absl::FunctionRef<void(size_t)> piece;
  std::atomic<size_t> next{0};

  absl::Mutex mutex;  // a leaf
  size_t helpers ABSL_GUARDED_BY(mutex) = 0;

  bool no_helpers() const ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    return helpers == 0;
  }
  void leave() ABSL_LOCKS_EXCLUDED(mutex) {
    absl::MutexLock lock(&mutex);
    --helpers;
  }
};

class Helper final : public WorkItem {
 public:
  explicit Helper(Work* work) : work_(work) {}
  void run() override {
    work_->run_some();
    work_->leave();
  }
  void abandon() override { work_->leave(); }

 private:
  Work* const work_;
};

}  // namespace

void run_pieces(Executor* executor, size_t count, size_t max_helpers,
                absl::FunctionRef<void(size_t index)> piece) {
  Work work(count, piece);
  const size_t width = executor == nullptr ? 0 : executor->width();
  const size_t wanted =
      count < 2 ? 0 : std::min({width, max_helpers, count - 1});
  std::deque<Helper> helpers;
  std::shared_ptr<WorkQueue> queue;
  if (wanted > 0) queue = executor->make_queue({"pieces", wanted});
  while (helpers.size() < wanted) {
    helpers.emplace_back(&work);
    {
      absl::MutexLock lock(&work.mutex);
      ++work.helpers;
    }
    if (queue->submit(&helpers.back())) continue;
    work.leave();
    helpers.pop_back();
    break;
  }
  work.run_some();
  for (Helper& helper : helpers) {
    if (queue->withdraw(&helper)) work.leave();
  }
  absl::MutexLock lock(&work.mutex);
  work.mutex.Await(absl::Condition(&work, &Work::no_helpers));
}

}  // namespace spindle

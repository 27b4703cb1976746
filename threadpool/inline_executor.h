// InlineExecutor: an Executor without threads.
//
// submit() queues, and run_one() runs one item on the thread that calls it.
// By default queues are served in turn, each first in, first out; with a seed,
// the next item is drawn at random, from any queue and from among the first few
// of that queue, which is how a pool of threads would interleave them.
//
// It stops the process on misuse: an item submitted twice, or stop() from
// inside an item.
//
// Thread safety: every method may be called from any thread at any time.
#ifndef SPINDLE_THREADPOOL_INLINE_EXECUTOR_H_
#define SPINDLE_THREADPOOL_INLINE_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "threadpool/executor.h"
#include "threadpool/fork_guard.h"

namespace spindle {

struct InlineExecutorOptions {
  // Absent: in turn, first in, first out.
  std::optional<uint64_t> seed = std::nullopt;
  // With a seed: how many items at the head of a queue may go first.
  size_t reorder_window = 8;
};

class InlineExecutor final : public Executor {
 public:
  explicit InlineExecutor(const InlineExecutorOptions& options = {});
  ~InlineExecutor() override;

  std::shared_ptr<WorkQueue> make_queue(
      const WorkQueueOptions& options) override;
  size_t width() const override { return 0; }

  // Also from inside an item: an item that waits for another one runs it.
  bool run_one() override;

  bool on_worker_thread() const override;
  void stop(StopMode mode) override;

 private:
  class Core;
  class Queue;

  const ForkGuard fork_guard_;
  // Shared with the queues, which may outlive the executor.
  const std::shared_ptr<Core> core_;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_INLINE_EXECUTOR_H_

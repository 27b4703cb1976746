// create_executor() for builds without oneTBB.
#include "threadpool/default_executor.h"
#include "threadpool/inline_executor.h"

namespace spindle {

absl::StatusOr<std::unique_ptr<Executor>> create_executor(
    const ExecutorOptions& options) {
  return std::unique_ptr<Executor>(std::make_unique<InlineExecutor>(
      InlineExecutorOptions{.seed = options.interleaving_seed}));
}

}  // namespace spindle

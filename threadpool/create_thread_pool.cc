// create_executor() for builds with oneTBB.
#include <utility>

#include "threadpool/default_executor.h"
#include "threadpool/thread_pool.h"

namespace spindle {

absl::StatusOr<std::unique_ptr<Executor>> create_executor(
    const ExecutorOptions& options) {
  absl::StatusOr<std::unique_ptr<ThreadPool>> pool =
      ThreadPool::create({.width = options.width, .name = options.name});
  if (!pool.ok()) return pool.status();
  return std::unique_ptr<Executor>(*std::move(pool));
}

}  // namespace spindle

#include "threadpool/default_executor.h"

#include <utility>

#include "threadpool/pool_check.h"

namespace spindle {

std::unique_ptr<Executor> make_executor(const ExecutorOptions& options) {
  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor(options);
  if (!executor.ok()) {
    pool_fail(executor.status().ToString().c_str());
  }
  return *std::move(executor);
}

}  // namespace spindle

#include "threadpool/default_executor.h"

#include <utility>

#include "absl/base/internal/raw_logging.h"

namespace spindle {

std::unique_ptr<Executor> make_executor(const ExecutorOptions& options) {
  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor(options);
  if (!executor.ok()) {
    ABSL_RAW_LOG(FATAL, "%s", executor.status().ToString().c_str());
  }
  return *std::move(executor);
}

}  // namespace spindle

// The Executor that a program takes unless it has reasons of its own: a
// ThreadPool, or, in a build without oneTBB (--config=notbb), an
// InlineExecutor, so that nobody else needs to know which it is.
//
// Thread safety: free functions that any thread may call.
#ifndef SPINDLE_THREADPOOL_DEFAULT_EXECUTOR_H_
#define SPINDLE_THREADPOOL_DEFAULT_EXECUTOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "threadpool/executor.h"

namespace spindle {

struct ExecutorOptions {
  // For a ThreadPool; an InlineExecutor has width 0.
  size_t width = 64;
  std::string name = "spindle";
  // For an InlineExecutor: start items in a random order, which this seed
  // determines, instead of in turn.
  std::optional<uint64_t> interleaving_seed = std::nullopt;
};

// Fails as ThreadPool::create() does; an InlineExecutor never fails.
absl::StatusOr<std::unique_ptr<Executor>> create_executor(
    const ExecutorOptions& options);

// The same for tests and programs that cannot do without: a failure ends the
// process with its message.
std::unique_ptr<Executor> make_executor(const ExecutorOptions& options);

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_DEFAULT_EXECUTOR_H_

// What every job on images takes.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_JOBS_JOB_OPTIONS_H_
#define SPINDLE_ENGINE_JOBS_JOB_OPTIONS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "threadpool/executor.h"

namespace spindle {

// As many threads as a job keeps busy: a pool that is made for one job needs no
// more.
inline constexpr size_t kJobWidth = 8;

struct JobOptions {
  // Pieces run here, too; null: only on the caller's thread.
  Executor* executor = nullptr;
  // Told, from one thread at a time, how much is done; may be empty.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Set by anybody, at any time: the job then ends soon, with kCancelled.  May
  // be null.
  const std::atomic<bool>* cancelled = nullptr;

  void report(uint64_t done, uint64_t total) const {
    if (progress) progress(done, total);
  }
  absl::Status check_cancelled() const {
    const bool stop =
        cancelled != nullptr && cancelled->load(std::memory_order_relaxed);
    return stop ? absl::CancelledError("cancelled") : absl::OkStatus();
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_JOB_OPTIONS_H_

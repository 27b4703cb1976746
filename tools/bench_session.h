// An image, opened to be measured: executor, completion queue and device.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_BENCH_SESSION_H_
#define SPINDLE_TOOLS_BENCH_SESSION_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "threadpool/executor.h"

namespace spindle {

struct BenchTarget {
  std::string filename;
  std::string format;  // empty: guess it
  bool read_only = true;
  bool force_share = false;
  CacheMode cache_mode = CacheMode::kWriteback;
  bool run_in_place = false;
  // The pool's width; absent: its default.
  std::optional<size_t> threads;
};

class BenchSession {
 public:
  // Errors: "Could not open '...': ...".
  static absl::StatusOr<std::unique_ptr<BenchSession>> open(
      const BenchTarget& target);

  BlockDevice* device() const { return device_.get(); }
  absl::Status close() { return device_->close(); }

 private:
  BenchSession(std::unique_ptr<Executor> executor,
               std::unique_ptr<BlockDevice> device)
      : executor_(std::move(executor)), device_(std::move(device)) {}

  const std::unique_ptr<Executor> executor_;  // outlives the device
  const std::unique_ptr<BlockDevice> device_;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_BENCH_SESSION_H_

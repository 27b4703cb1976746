// An image, opened to be measured: executor, completion queue and device.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_BENCH_SESSION_H_
#define SPINDLE_TOOLS_BENCH_SESSION_H_

#include <cstddef>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_device.h"
#include "engine/secret_store.h"
#include "threadpool/executor.h"
#include "tools/image_opts.h"

namespace spindle {

struct BenchTarget {
  ImageArgument image;
  std::shared_ptr<const SecretStore> secrets = nullptr;
  bool read_only = true;
  bool force_share = false;
  CacheMode cache_mode = CacheMode::kWriteback;
  bool run_in_place = false;
  // The pool's width; absent: its default.
  std::optional<size_t> threads;
};

class BenchSession {
 public:
  // Errors: what is behind "Could not open '...': " is qemu_words() of it.
  static absl::StatusOr<std::unique_ptr<BenchSession>> open(
      const BenchTarget& target);
  // What is wrong with the image is said on standard error, and the result is
  // null then.
  static absl::StatusOr<std::unique_ptr<BenchSession>> open_or_complain(
      const BenchTarget& target);

  BlockDevice* device() const { return device_.get(); }
  absl::Status close() { return device_->close(); }

 private:
  static absl::StatusOr<std::unique_ptr<BenchSession>> over(
      std::shared_ptr<BlockDriver> driver, const BenchTarget& target);
  BenchSession(std::unique_ptr<Executor> executor,
               std::unique_ptr<BlockDevice> device)
      : executor_(std::move(executor)), device_(std::move(device)) {}

  const std::unique_ptr<Executor> executor_;  // outlives the device
  const std::unique_ptr<BlockDevice> device_;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_BENCH_SESSION_H_

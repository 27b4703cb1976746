#include "tools/bench_session.h"

#include <utility>

#include "engine/cache_mode.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

OpenOptions open_options(const BenchTarget& target) {
  OpenOptions options;
  options.read_only = target.read_only;
  options.force_share = target.force_share;
  apply_cache_mode(target.cache_mode, &options);
  return options;
}

ImageOpener opener_for(const BenchTarget& target) {
  return ImageOpener(builtin_drivers(), tool_policy(target.secrets));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BenchSession>> BenchSession::open(
    const BenchTarget& target) {
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      open_image(opener_for(target), target.image, open_options(target));
  if (!driver.ok()) return driver.status();
  return over(*std::move(driver), target);
}

absl::StatusOr<std::unique_ptr<BenchSession>> BenchSession::open_or_complain(
    const BenchTarget& target) {
  std::shared_ptr<BlockDriver> driver = spindle::open_or_complain(
      opener_for(target), target.image, open_options(target));
  if (driver == nullptr) return nullptr;
  return over(std::move(driver), target);
}

absl::StatusOr<std::unique_ptr<BenchSession>> BenchSession::over(
    std::shared_ptr<BlockDriver> driver, const BenchTarget& target) {
  ExecutorOptions executor_options;
  if (target.threads.has_value()) executor_options.width = *target.threads;
  absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor(executor_options);
  if (!executor.ok()) return executor.status();

  BlockDeviceOptions device_options;
  device_options.cache_mode = target.cache_mode;
  device_options.run_in_place = target.run_in_place;
  // The one device may use the whole pool.
  device_options.max_workers = target.threads.value_or(0);

  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      BlockDevice::create(std::move(driver), executor->get(), device_options);
  if (!device.ok()) return device.status();
  return std::unique_ptr<BenchSession>(
      new BenchSession(*std::move(executor), *std::move(device)));
}

}  // namespace spindle

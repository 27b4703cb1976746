#include "tools/bench_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const BenchTarget& target) {
  ImageOpener::Policy policy;
  policy.probe_image = target.format.empty();
  const ImageOpener opener(builtin_drivers(), policy);
  OpenOptions options;
  options.read_only = target.read_only;
  options.force_share = target.force_share;
  apply_cache_mode(target.cache_mode, &options);
  return opener.open(target.filename, target.format, options);
}

}  // namespace

absl::StatusOr<std::unique_ptr<BenchSession>> BenchSession::open(
    const BenchTarget& target) {
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

  absl::StatusOr<std::shared_ptr<BlockDriver>> driver = open_image(target);
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      driver.ok() ? BlockDevice::create(*std::move(driver), executor->get(),
                                        device_options)
                  : driver.status();
  if (!device.ok()) {
    return with_context(device.status(),
                        absl::StrCat("Could not open '", target.filename, "'"));
  }
  return std::unique_ptr<BenchSession>(
      new BenchSession(*std::move(executor), *std::move(device)));
}

}  // namespace spindle

// ThrottleDriver: limits on the operations and bytes per second of the driver
// below it (QEMU's throttle).
//
// A BlockDevice that lies right above takes the limits over: its requests wait
// in the generic layer, hold no worker, and can be cancelled.  Below a format
// there is nobody who could, and requests wait here, on their callers' threads.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_FILTERS_THROTTLE_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_THROTTLE_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/filter_driver.h"
#include "engine/format.h"
#include "engine/throttle_group.h"
#include "formats/filters/filter_options.h"

namespace spindle {

class ThrottleDriver final : public FilterDriver, public ThrottleSource {
 public:
  // Shares ownership of both.
  ThrottleDriver(std::shared_ptr<BlockDriver> child,
                 std::shared_ptr<ThrottleGroup> group);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return "throttle"; }
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;

  std::shared_ptr<ThrottleGroup> take_over_throttle() override;

 private:
  void wait(ThrottleGroup::Direction direction, uint64_t bytes);

  const std::shared_ptr<ThrottleGroup> group_;
  ThrottleGroup::Member member_;
  std::atomic<bool> taken_over_{false};
};

// Takes QEMU's names: "iops-total", "iops-total-max", "iops-total-max-length",
// the same for "iops-read", "iops-write", "bps-total", "bps-read", "bps-write",
// and "iops-size".
// Errors: kInvalidArgument.
absl::StatusOr<ThrottleLimits> take_throttle_limits(FilterOptions* options);

// Options: those, and "throttle-group": filters that name the same group share
// its limits, which the first one to open states; others state the same or
// none.
const DriverFilter* throttle_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_THROTTLE_DRIVER_H_

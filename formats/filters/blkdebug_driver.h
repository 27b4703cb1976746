// BlkdebugDriver: injects errors, stops requests, and has other limits than the
// driver below it (QEMU's blkdebug).
//
// It lies below a format, whose accesses raise events by their purpose
// (blkdebug_events.h); what becomes of the requests that follow is the business
// of BlkdebugRules.  Every write also raises "pwritev" and "pwritev_done".
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_FILTERS_BLKDEBUG_DRIVER_H_
#define SPINDLE_FORMATS_FILTERS_BLKDEBUG_DRIVER_H_

#include <cstdint>
#include <memory>

#include "engine/access.h"
#include "engine/filter_driver.h"
#include "engine/format.h"
#include "formats/filters/blkdebug_config.h"
#include "formats/filters/blkdebug_rules.h"

namespace spindle {

class BlkdebugDriver final : public FilterDriver, private AccessObserver {
 public:
  // Without a seed it takes one from the machine; info() prints it.
  // Errors: kInvalidArgument for limits that contradict each other.
  static absl::StatusOr<std::shared_ptr<BlkdebugDriver>> create(
      std::shared_ptr<BlockDriver> child, const BlkdebugConfig& config);

  BlkdebugRules& rules() { return rules_; }

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;
  absl::string_view format_name() const override { return "blkdebug"; }
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  AccessObserver* access_observer() override { return this; }
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;

 private:
  BlkdebugDriver(std::shared_ptr<BlockDriver> child,
                 const BlkdebugConfig& config);

  absl::Status before_access(const Access& access) override;
  uint64_t alignment() const;
  // Where the last sector of the driver below ends.
  uint64_t child_end() const;

  const BlkdebugLimits limits_;
  const uint64_t child_alignment_;
  AccessObserver* const child_observer_;
  BlkdebugRules rules_;
};

// The blkdebug that `top`, or what it stores to, goes through: what raises
// events for the images above it.  Null if there is none.
BlkdebugDriver* find_blkdebug(BlockDriver* top);

// Options: config, inject-error.N.*, set-state.N.*, align, max-transfer,
// opt-write-zero, max-write-zero, opt-discard, max-discard, seed.  The driver
// below is "image".
const DriverFilter* blkdebug_filter();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_BLKDEBUG_DRIVER_H_

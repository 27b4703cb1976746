// HostDeviceDriver: an image on a block device of the host, sector for sector.
//
// A device has the length that it has: writes beyond the end and requests to
// grow fail with ENOSPC.  Holds no lock on the data path.
//
// Thread safety: as BlockDriver.
#ifndef SPINDLE_FORMATS_RAW_HOST_DEVICE_DRIVER_H_
#define SPINDLE_FORMATS_RAW_HOST_DEVICE_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/raw/posix_driver.h"
#include "formats/raw/posix_file.h"

namespace spindle {

class HostDeviceDriver final : public PosixDriver {
 public:
  // Errors: those of PosixFile::open().
  static absl::StatusOr<std::shared_ptr<HostDeviceDriver>> open(
      const std::string& filename, const OpenOptions& options);

  absl::Status write(const IoVector& qiov, Sector sector) override;

  DriverLimits limits() const override;
  Capabilities capabilities() const override;

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  // Succeeds where there is nothing to do (the device may have grown since it
  // was opened).  Errors: kResourceExhausted with ENOSPC for a length that the
  // device does not have, kUnimplemented for a shorter one.
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;

 private:
  HostDeviceDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes,
                   uint32_t logical_block_bytes);

  absl::Status read_beyond_end(const IoVector& qiov, uint64_t offset,
                               uint64_t done) override;
  absl::Status zero_by_ioctl(ByteRange range);
  absl::Status zero_by_unmapping(ByteRange range);

  const uint32_t logical_block_bytes_;
  // What the device turned out not to have.
  std::atomic<bool> can_discard_{true};
  std::atomic<bool> can_unmap_zeroes_{true};
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_HOST_DEVICE_DRIVER_H_

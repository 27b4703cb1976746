#include "formats/raw/announcing_driver.h"

#include <utility>

#include "absl/base/macros.h"

namespace spindle {

AnnouncingDriver::AnnouncingDriver(std::shared_ptr<BlockDriver> file)
    : FilterDriver(std::move(file)), observer_(child().access_observer()) {
  ABSL_ASSERT(observer_ != nullptr);
}

absl::Status AnnouncingDriver::read(const IoVector& qiov, Sector sector) {
  absl::Status status =
      observer_->before_access({Purpose::kReadAio,
                                AccessKind::kRead,
                                {sector.byte_offset(), qiov.length_bytes()}});
  return status.ok() ? child().read(qiov, sector) : status;
}

absl::Status AnnouncingDriver::write(const IoVector& qiov, Sector sector) {
  absl::Status status =
      observer_->before_access({Purpose::kWriteAio,
                                AccessKind::kWrite,
                                {sector.byte_offset(), qiov.length_bytes()}});
  return status.ok() ? child().write(qiov, sector) : status;
}

absl::Status AnnouncingDriver::flush() {
  absl::Status status =
      observer_->before_access({Purpose::kFlushToDisk, AccessKind::kFlush, {}});
  return status.ok() ? child().flush() : status;
}

absl::Status AnnouncingDriver::write_zeroes(ByteRange range,
                                            WriteZeroesFlags flags) {
  absl::Status status = observer_->before_access(
      {Purpose::kPwritevZero, AccessKind::kWriteZeroes, range});
  return status.ok() ? child().write_zeroes(range, flags) : status;
}

Capabilities AnnouncingDriver::capabilities() const {
  Capabilities capabilities = child().capabilities();
  capabilities.remove(Capability::kTryRead);
  capabilities.remove(Capability::kTryWrite);
  return capabilities;
}

}  // namespace spindle

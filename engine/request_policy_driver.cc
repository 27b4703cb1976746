#include "engine/request_policy_driver.h"

#include <utility>

#include "absl/status/status.h"

namespace spindle {

RequestPolicyDriver::RequestPolicyDriver(std::shared_ptr<BlockDriver> child,
                                         bool discard,
                                         DetectZeroes detect_zeroes)
    : FilterDriver(std::move(child)),
      discard_(discard),
      detect_zeroes_(detect_zeroes) {}

Capabilities RequestPolicyDriver::capabilities() const {
  Capabilities capabilities = child().capabilities();
  if (detect_zeroes_ != DetectZeroes::kOff)
    capabilities.remove(Capability::kTryWrite);
  return capabilities;
}

absl::Status RequestPolicyDriver::write(const IoVector& qiov, Sector sector) {
  const bool may_be_less = detect_zeroes_ != DetectZeroes::kOff &&
                           capabilities().has(Capability::kWriteZeroes);
  if (may_be_less && qiov.is_zero()) {
    const ByteRange range{sector.byte_offset(), qiov.length_bytes()};
    absl::Status status = child().write_zeroes(
        range, {.may_unmap = detect_zeroes_ == DetectZeroes::kUnmap,
                .no_fallback = false});
    if (!absl::IsUnimplemented(status)) return status;
  }
  return child().write(qiov, sector);
}

absl::Status RequestPolicyDriver::discard(ByteRange range) {
  return discard_ ? child().discard(range) : absl::OkStatus();
}

absl::Status RequestPolicyDriver::write_zeroes(ByteRange range,
                                               WriteZeroesFlags flags) {
  flags.may_unmap = flags.may_unmap && discard_;
  return child().write_zeroes(range, flags);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> apply_request_policy(
    std::shared_ptr<BlockDriver> driver, const OpenOptions& options) {
  if (options.detect_zeroes == DetectZeroes::kUnmap && !options.discard) {
    return absl::InvalidArgumentError(
        "setting detect-zeroes to unmap is not allowed without setting discard "
        "operation to unmap");
  }
  if (options.discard && options.detect_zeroes == DetectZeroes::kOff)
    return driver;
  return std::make_shared<RequestPolicyDriver>(
      std::move(driver), options.discard, options.detect_zeroes);
}

}  // namespace spindle

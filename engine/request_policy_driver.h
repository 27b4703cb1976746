// RequestPolicyDriver: an image whose discards are ignored, or whose writes of
// zeroes become more than writes (OpenOptions::discard, detect_zeroes).
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_ENGINE_REQUEST_POLICY_DRIVER_H_
#define SPINDLE_ENGINE_REQUEST_POLICY_DRIVER_H_

#include <memory>

#include "engine/filter_driver.h"
#include "engine/format.h"
#include "engine/request.h"

namespace spindle {

class RequestPolicyDriver final : public FilterDriver {
 public:
  RequestPolicyDriver(std::shared_ptr<BlockDriver> child, bool discard,
                      DetectZeroes detect_zeroes);

  absl::Status write(const IoVector& qiov, Sector sector) override;
  Capabilities capabilities() const override;
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;

 private:
  const bool discard_;
  const DetectZeroes detect_zeroes_;
};

// `driver`, under the policy that `options` state; itself, if that changes
// nothing.
// Errors: kInvalidArgument for detect_zeroes=unmap without discard.
absl::StatusOr<std::shared_ptr<BlockDriver>> apply_request_policy(
    std::shared_ptr<BlockDriver> driver, const OpenOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_REQUEST_POLICY_DRIVER_H_

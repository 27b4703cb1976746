// DriverTransfer: transfers of any length and segmentation over a driver that
// has limits.
//
// Offsets and lengths are multiples of the driver's request alignment.  What
// the driver takes in one call goes through as it is.  The rest is split at the
// driver's best boundaries, and goes through an aligned buffer where the driver
// cannot take the memory.
//
// Does not own the driver.
//
// Thread safety: every method from any thread, but no transfer may be under way
// during refresh().
#ifndef SPINDLE_ENGINE_DRIVER_TRANSFER_H_
#define SPINDLE_ENGINE_DRIVER_TRANSFER_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "engine/aligned_buffer.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"

namespace spindle {

class DriverTransfer {
 public:
  enum class Direction { kRead, kWrite };

  explicit DriverTransfer(BlockDriver* driver);
  DriverTransfer(const DriverTransfer&) = delete;
  DriverTransfer& operator=(const DriverTransfer&) = delete;

  // Errors: kInvalidArgument if the driver's limits contradict themselves.
  static absl::Status check_limits(const DriverLimits& limits);
  // Asks the driver for its limits again.
  void refresh();
  const DriverLimits& limits() const { return limits_; }

  // True if the driver takes `qiov` in one call.
  bool fits(const IoVector& qiov) const;

  absl::Status transfer(Direction direction, const IoVector& qiov,
                        uint64_t offset_bytes);

  // Writes `length_bytes` zeroes, from a shared buffer, in writes as long as
  // QEMU's: one of them places all its clusters before it frees any.
  static constexpr uint64_t kMostZeroesAtOnce = uint64_t{16} << 20;
  absl::Status write_zeroes_by_hand(uint64_t offset_bytes,
                                    uint64_t length_bytes);

  // A buffer that the driver can take, for the caller's own bouncing.
  AlignedBufferPool::Lease take_buffer(size_t size_bytes) {
    return buffers_->take(size_bytes);
  }

 private:
  struct Piece {
    uint64_t length;
    bool bounce;
  };

  Piece next_piece(const IoVector& rest, uint64_t offset_bytes) const;
  absl::Status call(Direction direction, const IoVector& qiov,
                    uint64_t offset_bytes);
  absl::Status bounce(Direction direction, const IoVector& qiov,
                      uint64_t offset_bytes);

  BlockDriver* const driver_;
  DriverLimits limits_;
  std::unique_ptr<AlignedBufferPool> buffers_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_DRIVER_TRANSFER_H_

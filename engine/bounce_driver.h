// BounceDriver: gives a LinearDriver the vectored, thread-safe interface of a
// BlockDriver.
//
// What is one aligned segment goes straight to the linear driver; all else goes
// through an aligned bounce buffer, in pieces of limited size.  It owns the
// linear driver.
//
// Thread safety: any thread may call any method at any time; if the linear
// driver takes one call at a time, they queue up here.
#ifndef SPINDLE_ENGINE_BOUNCE_DRIVER_H_
#define SPINDLE_ENGINE_BOUNCE_DRIVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/aligned_buffer.h"
#include "engine/block_driver.h"
#include "engine/linear_driver.h"

namespace spindle {

class BounceDriver : public BlockDriver {
 public:
  static constexpr size_t kDefaultBounceBytes = size_t{256} << 10;

  // A bounce buffer has at most `max_bounce_bytes`, but at least one unit of
  // the linear driver's alignment.  REQUIRES: linear != nullptr.
  explicit BounceDriver(std::unique_ptr<LinearDriver> linear,
                        size_t max_bounce_bytes = kDefaultBounceBytes);
  ~BounceDriver() override;

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override ABSL_LOCKS_EXCLUDED(one_at_a_time_);

  absl::string_view format_name() const override;
  std::string filename() const override { return linear_->filename(); }
  uint64_t length_bytes() const override { return linear_->length_bytes(); }
  bool read_only() const override { return linear_->read_only(); }
  // Memory needs no alignment: that is what the bounce buffer is for.
  DriverLimits limits() const override;
  Capabilities capabilities() const override { return capabilities_; }
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override {
    return linear_->identity();
  }
  BlockDriver* below() const override { return linear_->below(); }

  absl::Status discard(ByteRange range) override
      ABSL_LOCKS_EXCLUDED(one_at_a_time_);
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override
      ABSL_LOCKS_EXCLUDED(one_at_a_time_);
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override
      ABSL_LOCKS_EXCLUDED(one_at_a_time_);
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override
      ABSL_LOCKS_EXCLUDED(one_at_a_time_);
  absl::Status reopen(const ReopenOptions& options) override
      ABSL_LOCKS_EXCLUDED(one_at_a_time_);
  absl::Status close() override;

 private:
  enum class Direction { kRead, kWrite };

  // Calls `operation` when it is the linear driver's turn.
  template <typename Operation>
  auto in_turn(Operation operation) ABSL_LOCKS_EXCLUDED(one_at_a_time_) {
    if (!serialise_) return operation();
    absl::MutexLock lock(&one_at_a_time_);
    return operation();
  }

  absl::Status transfer(Direction direction, const IoVector& qiov,
                        uint64_t offset_bytes);
  absl::Status bounce(Direction direction, const IoVector& piece,
                      uint64_t offset_bytes);
  absl::Status call(Direction direction, const iovec& memory,
                    uint64_t offset_bytes) ABSL_LOCKS_EXCLUDED(one_at_a_time_);

  const std::unique_ptr<LinearDriver> linear_;
  const Capabilities capabilities_;
  const bool serialise_;
  const size_t max_direct_bytes_;
  const size_t max_bounce_bytes_;
  AlignedBufferPool buffers_;

  // Held across the linear driver's I/O, because that is what it asks for: its
  // calls must not overlap.  Not taken if !serialise_, which is why no
  // annotation ties linear_ to it.  A leaf.
  absl::Mutex one_at_a_time_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BOUNCE_DRIVER_H_

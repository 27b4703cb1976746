#include "engine/bounce_driver.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/base/macros.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

constexpr size_t kBuffersKept = 4;

size_t max_transfer_of(const LinearDriver& linear) {
  const size_t limit_bytes = linear.max_transfer_bytes();
  return limit_bytes > 0 ? limit_bytes : std::numeric_limits<size_t>::max();
}

// A limit in whole units, at least one.
size_t whole_units(size_t limit_bytes, size_t unit_bytes) {
  return std::max<size_t>(align_down(limit_bytes, unit_bytes), unit_bytes);
}

}  // namespace

BounceDriver::BounceDriver(std::unique_ptr<LinearDriver> linear,
                           size_t max_bounce_bytes)
    : linear_(std::move(linear)),
      capabilities_(linear_->capabilities()),
      serialise_(linear_->one_at_a_time()),
      max_direct_bytes_(
          whole_units(max_transfer_of(*linear_), linear_->alignment_bytes())),
      max_bounce_bytes_(
          std::min(max_direct_bytes_,
                   whole_units(max_bounce_bytes, linear_->alignment_bytes()))),
      buffers_(linear_->alignment_bytes(), kBuffersKept, max_bounce_bytes_) {
  ABSL_ASSERT(is_power_of_two(linear_->alignment_bytes()));
}

BounceDriver::~BounceDriver() = default;

absl::string_view BounceDriver::format_name() const {
  return linear_->format_name();
}

DriverLimits BounceDriver::limits() const {
  DriverLimits limits;
  limits.request_alignment_bytes = linear_->alignment_bytes();
  limits.optimal_transfer_bytes = linear_->optimal_transfer_bytes();
  return limits;
}

absl::Status BounceDriver::read(const IoVector& qiov, Sector sector) {
  return transfer(Direction::kRead, qiov, sector.byte_offset());
}

absl::Status BounceDriver::write(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(!read_only());
  return transfer(Direction::kWrite, qiov, sector.byte_offset());
}

absl::Status BounceDriver::flush() {
  return in_turn([&] { return linear_->flush(); });
}

ImageInfo BounceDriver::info() const {
  ImageInfo info = BlockDriver::info();
  linear_->add_to_info(&info);
  return info;
}

absl::Status BounceDriver::discard(ByteRange range) {
  if (!capabilities_.has(Capability::kDiscard))
    return BlockDriver::discard(range);
  return in_turn([&] { return linear_->discard(range); });
}

absl::Status BounceDriver::write_zeroes(ByteRange range,
                                        WriteZeroesFlags flags) {
  if (!capabilities_.has(Capability::kWriteZeroes))
    return BlockDriver::write_zeroes(range, flags);
  return in_turn([&] { return linear_->write_zeroes(range, flags); });
}

absl::StatusOr<BlockStatus> BounceDriver::block_status(ByteRange range,
                                                       BlockStatusScope scope) {
  if (!capabilities_.has(Capability::kBlockStatus))
    return BlockDriver::block_status(range, scope);
  return in_turn([&] { return linear_->block_status(range, scope); });
}

absl::StatusOr<CheckResult> BounceDriver::check(const CheckOptions& options) {
  if (!capabilities_.has(Capability::kCheck))
    return BlockDriver::check(options);
  return in_turn([&] { return linear_->check(options); });
}

absl::Status BounceDriver::reopen(const ReopenOptions& options) {
  if (!capabilities_.has(Capability::kReopen))
    return BlockDriver::reopen(options);
  return in_turn([&] { return linear_->reopen(options); });
}

absl::Status BounceDriver::close() { return linear_->close(); }

absl::Status BounceDriver::transfer(Direction direction, const IoVector& qiov,
                                    uint64_t offset_bytes) {
  const uint32_t unit = linear_->alignment_bytes();
  ABSL_ASSERT(is_aligned(offset_bytes | qiov.length_bytes(), unit));
  uint64_t done = 0;
  while (done < qiov.length_bytes()) {
    iovec segment;
    qiov.export_segments(done, max_direct_bytes_, absl::MakeSpan(&segment, 1));
    absl::Status status;
    uint64_t bytes = align_down(segment.iov_len, unit);
    // Short segments are gathered rather than passed on one by one.
    const bool worth_a_call = segment.iov_len == qiov.length_bytes() - done ||
                              bytes >= max_bounce_bytes_;
    if (worth_a_call && IoVector(segment.iov_base, bytes).is_aligned(unit)) {
      status =
          call(direction, iovec{segment.iov_base, bytes}, offset_bytes + done);
    } else {
      bytes = std::min<uint64_t>(max_bounce_bytes_, qiov.length_bytes() - done);
      status = bounce(direction, qiov.slice(done, bytes), offset_bytes + done);
    }
    if (!status.ok()) return status;
    done += bytes;
  }
  return absl::OkStatus();
}

absl::Status BounceDriver::bounce(Direction direction, const IoVector& piece,
                                  uint64_t offset_bytes) {
  const size_t bytes = piece.length_bytes();
  // Always of one size, so that the next user can have it.
  const AlignedBufferPool::Lease buffer = buffers_.take(max_bounce_bytes_);
  if (direction == Direction::kWrite) piece.copy_to(0, buffer.data(), bytes);
  absl::Status status =
      call(direction, iovec{buffer.data(), bytes}, offset_bytes);
  if (!status.ok()) return status;
  if (direction == Direction::kRead) piece.copy_from(0, buffer.data(), bytes);
  return status;
}

absl::Status BounceDriver::call(Direction direction, const iovec& memory,
                                uint64_t offset_bytes) {
  return in_turn([&] {
    return direction == Direction::kRead
               ? linear_->read(memory.iov_base, memory.iov_len, offset_bytes)
               : linear_->write(memory.iov_base, memory.iov_len, offset_bytes);
  });
}

}  // namespace spindle

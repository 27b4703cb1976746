#include "engine/driver_transfer.h"

#include <algorithm>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

constexpr size_t kBounceBytes = size_t{128} << 10;
constexpr size_t kBuffersKept = 16;
// At least a page: what O_DIRECT asks for almost everywhere.
constexpr size_t kBufferAlignment = 4096;

constexpr size_t kZeroesBytes = size_t{64} << 10;
alignas(kBufferAlignment) uint8_t zeroes[kZeroesBytes];

// The same memory as often as it takes.
IoVector zero_vector(uint64_t length_bytes) {
  constexpr size_t kUsualCount = 16;
  absl::InlinedVector<iovec, kUsualCount> segments;
  while (length_bytes > 0) {
    const size_t length = std::min<uint64_t>(length_bytes, kZeroesBytes);
    segments.push_back({zeroes, length});
    length_bytes -= length;
  }
  return IoVector(absl::MakeConstSpan(segments));
}

uint64_t bytes_in_front(const IoVector& qiov, size_t segment_count) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < std::min(segment_count, qiov.segment_count()); ++i) {
    bytes += qiov.segment(i).iov_len;
  }
  return bytes;
}

}  // namespace

DriverTransfer::DriverTransfer(BlockDriver* driver) : driver_(driver) {
  refresh();
}

void DriverTransfer::refresh() {
  limits_ = driver_->limits();
  buffers_ = std::make_unique<AlignedBufferPool>(
      std::max<size_t>(kBufferAlignment, limits_.memory_alignment_bytes),
      kBuffersKept,
      std::max<size_t>(kBounceBytes, limits_.request_alignment_bytes));
}

absl::Status DriverTransfer::check_limits(const DriverLimits& limits) {
  const auto bad = [](absl::string_view name, uint64_t value) {
    return absl::InvalidArgumentError(
        absl::StrCat("the driver's limit ", name, " is ", value));
  };
  const auto aligns_sectors = [](uint32_t alignment) {
    return is_power_of_two(alignment) && alignment >= kSectorSizeBytes;
  };
  if (!aligns_sectors(limits.request_alignment_bytes)) {
    return bad("request_alignment_bytes", limits.request_alignment_bytes);
  }
  // What is no multiple of the memory's alignment could not even be bounced.
  if (!is_power_of_two(limits.memory_alignment_bytes) ||
      limits.memory_alignment_bytes > limits.request_alignment_bytes) {
    return bad("memory_alignment_bytes", limits.memory_alignment_bytes);
  }
  if (limits.max_transfer_bytes != 0 &&
      limits.max_transfer_bytes < limits.request_alignment_bytes) {
    return bad("max_transfer_bytes", limits.max_transfer_bytes);
  }
  if (!aligns_sectors(limits.discard_alignment_bytes)) {
    return bad("discard_alignment_bytes", limits.discard_alignment_bytes);
  }
  if (!aligns_sectors(limits.write_zeroes_alignment_bytes)) {
    return bad("write_zeroes_alignment_bytes",
               limits.write_zeroes_alignment_bytes);
  }
  return absl::OkStatus();
}

bool DriverTransfer::fits(const IoVector& qiov) const {
  return (limits_.max_transfer_bytes == 0 ||
          qiov.length_bytes() <= limits_.max_transfer_bytes) &&
         (limits_.max_segments == 0 ||
          qiov.segment_count() <= limits_.max_segments) &&
         (limits_.memory_alignment_bytes <= 1 ||
          qiov.is_aligned(limits_.memory_alignment_bytes));
}

absl::Status DriverTransfer::call(Direction direction, const IoVector& qiov,
                                  uint64_t offset_bytes) {
  const Sector sector = Sector::from_byte_offset(offset_bytes);
  return direction == Direction::kRead ? driver_->read(qiov, sector)
                                       : driver_->write(qiov, sector);
}

absl::Status DriverTransfer::transfer(Direction direction, const IoVector& qiov,
                                      uint64_t offset_bytes) {
  if (fits(qiov)) return call(direction, qiov, offset_bytes);
  uint64_t done = 0;
  while (done < qiov.length_bytes()) {
    const IoVector rest = qiov.slice(done, qiov.length_bytes() - done);
    const Piece piece = next_piece(rest, offset_bytes + done);
    const IoVector part = rest.slice(0, piece.length);
    const absl::Status status =
        piece.bounce ? bounce(direction, part, offset_bytes + done)
                     : call(direction, part, offset_bytes + done);
    if (!status.ok()) return status;
    done += piece.length;
  }
  return absl::OkStatus();
}

DriverTransfer::Piece DriverTransfer::next_piece(const IoVector& rest,
                                                 uint64_t offset_bytes) const {
  const uint64_t alignment = limits_.request_alignment_bytes;
  uint64_t longest = rest.length_bytes();
  if (limits_.max_transfer_bytes != 0) {
    longest =
        std::min(longest, align_down(limits_.max_transfer_bytes, alignment));
  }
  uint64_t length = longest;
  if (limits_.max_segments != 0) {
    length = std::min(
        length,
        align_down(bytes_in_front(rest, limits_.max_segments), alignment));
  }
  // The segments are too short, or lie where the driver cannot take them.
  const bool bounce = length == 0 || !rest.slice(0, length).is_aligned(
                                         limits_.memory_alignment_bytes);
  if (bounce)
    length = std::min<uint64_t>(longest,
                                std::max<uint64_t>(kBounceBytes, alignment));
  if (length < rest.length_bytes() && limits_.optimal_transfer_bytes != 0) {
    const uint64_t end = offset_bytes + length;
    const uint64_t boundary =
        align_down(end - end % limits_.optimal_transfer_bytes, alignment);
    if (boundary > offset_bytes) length = boundary - offset_bytes;
  }
  return {length, bounce};
}

absl::Status DriverTransfer::bounce(Direction direction, const IoVector& qiov,
                                    uint64_t offset_bytes) {
  const size_t length = qiov.length_bytes();
  const AlignedBufferPool::Lease buffer = buffers_->take(length);
  const IoVector linear(buffer.data(), length);
  if (direction == Direction::kWrite) {
    qiov.copy_to(0, buffer.data(), length);
    return call(direction, linear, offset_bytes);
  }
  const absl::Status status = call(direction, linear, offset_bytes);
  if (status.ok()) qiov.copy_from(0, buffer.data(), length);
  return status;
}

absl::Status DriverTransfer::write_zeroes_by_hand(uint64_t offset_bytes,
                                                  uint64_t length_bytes) {
  while (length_bytes > 0) {
    const IoVector piece =
        zero_vector(std::min(length_bytes, kMostZeroesAtOnce));
    const absl::Status status =
        transfer(Direction::kWrite, piece, offset_bytes);
    if (!status.ok()) return status;
    offset_bytes += piece.length_bytes();
    length_bytes -= piece.length_bytes();
  }
  return absl::OkStatus();
}

}  // namespace spindle

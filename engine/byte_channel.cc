#include "engine/byte_channel.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/write_padding.h"

// A "unit" below is one piece of the child's request alignment.
//
// Why aligned writes hold their range, too: a read-modify-write puts back the
// neighbouring bytes that it has read.  An aligned write to the same unit that
// came in between would be lost.
//
// Growing.  A driver stops a write at the end of the image if it ends within
// the last, partial unit.  So whoever writes beyond the end and ends in that
// unit first makes the child longer, to the exact byte.  Only a ragged write or
// a set_length() leaves a partial unit behind, and both hold that unit
// exclusively; so while a write holds its own range, no partial unit comes into
// being at its end.

namespace spindle {
namespace {

using Mode = RangeTracker::Mode;

constexpr size_t kMaxBounceBytes = size_t{1} << 20;
constexpr size_t kBuffersKept = 8;
constexpr size_t kZeroBlockBytes = size_t{64} << 10;

// Only ever read, but zero-initialised memory costs no space in the file.
alignas(4096) uint8_t zero_block[kZeroBlockBytes];

// Up to `bytes` zeroes, as many as fit an IoVector that allocates nothing.
IoVector zeroes_up_to(uint64_t bytes) {
  iovec segments[IoVector::kInlineSegments];
  size_t count = 0;
  while (bytes > 0 && count < IoVector::kInlineSegments) {
    const size_t length = std::min<uint64_t>(bytes, kZeroBlockBytes);
    segments[count++] = iovec{zero_block, length};
    bytes -= length;
  }
  return IoVector(absl::MakeConstSpan(segments, count));
}

absl::Status range_overflows(uint64_t offset, uint64_t length_bytes) {
  return absl::OutOfRangeError(absl::StrCat("access of ", length_bytes,
                                            " bytes at offset ", offset,
                                            " ends beyond 2^64"));
}

absl::Status no_room(const BlockDriver& child, uint64_t end) {
  return errno_status(
      ENOSPC, absl::StrCat("write up to offset ", end, " of '",
                           child.filename(), "', which has ",
                           child.length_bytes(), " bytes and cannot grow"));
}

}  // namespace

ByteChannel::ByteChannel(std::shared_ptr<BlockDriver> child)
    : child_(std::move(child)),
      observer_(child_->access_observer()),
      limits_(child_->limits()),
      capabilities_(child_->capabilities()),
      alignment_mask_(limits_.request_alignment_bytes - 1),
      buffers_(std::max(limits_.request_alignment_bytes,
                        limits_.memory_alignment_bytes),
               kBuffersKept, kMaxBounceBytes) {
  ABSL_ASSERT(is_power_of_two(limits_.request_alignment_bytes));
  ABSL_ASSERT(is_power_of_two(limits_.memory_alignment_bytes));
}

ByteChannel::~ByteChannel() = default;

// ---- Reading ----------------------------------------------------------------

absl::Status ByteChannel::read(Purpose purpose, const IoVector& qiov,
                               uint64_t offset) {
  const std::optional<ByteRange> range =
      make_byte_range(offset, qiov.length_bytes());
  if (!range.has_value()) return range_overflows(offset, qiov.length_bytes());
  if (absl::Status status = observe(purpose, AccessKind::kRead, *range);
      !status.ok()) {
    return status;
  }
  const uint64_t length = child_->length_bytes();
  if (range->end() <= length && is_direct(qiov, offset)) {
    if (range->empty()) return absl::OkStatus();
    return child_->read(qiov, Sector::from_byte_offset(offset));
  }
  const uint64_t stored =
      std::clamp(stored_end(length), offset, range->end()) - offset;
  qiov.fill(stored, qiov.length_bytes() - stored, 0);
  if (stored == 0) return absl::OkStatus();
  return read_stored(qiov.slice(0, stored), offset);
}

absl::Status ByteChannel::read(Purpose purpose, void* to, size_t length_bytes,
                               uint64_t offset) {
  return read(purpose, IoVector(to, length_bytes), offset);
}

uint64_t ByteChannel::try_read(Purpose, const IoVector& qiov, uint64_t offset) {
  if (observer_ != nullptr || !is_direct(qiov, offset)) return 0;
  const uint64_t length = child_->length_bytes();
  if (offset > length || qiov.length_bytes() > length - offset) return 0;
  return child_->try_read(qiov, Sector::from_byte_offset(offset));
}

// Reads whole units; what the caller did not ask for goes into padding.
absl::Status ByteChannel::read_stored(const IoVector& qiov, uint64_t offset) {
  const uint64_t unit = limits_.request_alignment_bytes;
  const uint64_t head = offset & alignment_mask_;
  const uint64_t tail = align_up(offset + qiov.length_bytes(), unit) - offset -
                        qiov.length_bytes();
  if (head == 0 && tail == 0) return transfer(Direction::kRead, qiov, offset);
  const AlignedBufferPool::Lease padding = buffers_.take(2 * unit);
  IoVector padded = IoVector::concatenate(IoVector(padding.data(), head), qiov);
  padded.append(IoVector(padding.data() + unit, tail));
  return transfer(Direction::kRead, padded, offset - head);
}

absl::Status ByteChannel::read_unit(uint64_t offset, uint8_t* to,
                                    uint64_t child_length_bytes) {
  const size_t unit = limits_.request_alignment_bytes;
  if (offset < child_length_bytes) {
    return call_child(Direction::kRead, IoVector(to, unit), offset);
  }
  std::memset(to, 0, unit);
  return absl::OkStatus();
}

// ---- Writing ----------------------------------------------------------------

absl::Status ByteChannel::write(Purpose purpose, const IoVector& qiov,
                                uint64_t offset) {
  const std::optional<ByteRange> range =
      make_byte_range(offset, qiov.length_bytes());
  if (!range.has_value()) return range_overflows(offset, qiov.length_bytes());
  if (absl::Status status = check_writable(*range); !status.ok()) return status;
  if (absl::Status status = observe(purpose, AccessKind::kWrite, *range);
      !status.ok()) {
    return status;
  }
  if (range->empty()) return absl::OkStatus();
  if (!is_ragged(*range)) {
    const RangeTracker::Hold hold(&ranges_, *range, Mode::kShared);
    return write_aligned_held(qiov, offset);
  }
  const uint64_t begin = align_down(offset, limits_.request_alignment_bytes);
  const uint64_t end = align_up(range->end(), limits_.request_alignment_bytes);
  const RangeTracker::Hold hold(&ranges_, ByteRange{begin, end - begin},
                                Mode::kExclusive);
  return write_ragged_held(qiov, offset);
}

absl::Status ByteChannel::write(Purpose purpose, const void* from,
                                size_t length_bytes, uint64_t offset) {
  return write(purpose, IoVector(const_cast<void*>(from), length_bytes),
               offset);
}

uint64_t ByteChannel::try_write(Purpose, const IoVector& qiov,
                                uint64_t offset) {
  if (observer_ != nullptr || !capabilities_.has(Capability::kTryWrite))
    return 0;
  if (qiov.empty() || !is_direct(qiov, offset) || child_->read_only()) return 0;
  const uint64_t length = child_->length_bytes();
  if (offset > length || qiov.length_bytes() > length - offset) return 0;
  const RangeTracker::Hold hold(&ranges_,
                                ByteRange{offset, qiov.length_bytes()},
                                Mode::kShared, RangeTracker::kTry);
  if (!hold.held()) return 0;
  return child_->try_write(qiov, Sector::from_byte_offset(offset));
}

absl::Status ByteChannel::write_aligned_held(const IoVector& qiov,
                                             uint64_t offset) {
  const uint64_t end = offset + qiov.length_bytes();
  if (end > child_->length_bytes()) {
    if (absl::Status status = make_room_held(end); !status.ok()) return status;
  }
  return transfer(Direction::kWrite, qiov, offset);
}

absl::Status ByteChannel::write_ragged_held(const IoVector& qiov,
                                            uint64_t offset) {
  const uint64_t unit = limits_.request_alignment_bytes;
  const UnalignedWrite write{
      .begin = offset, .end = offset + qiov.length_bytes(), .unit_bytes = unit};
  const uint64_t old_length = child_->length_bytes();
  if (absl::Status status = make_room_held(write.end); !status.ok())
    return status;

  const AlignedBufferPool::Lease padding = buffers_.take(2 * unit);
  uint8_t* const head = padding.data();
  uint8_t* const tail = write.has_one_unit() ? head : padding.data() + unit;
  absl::Status status = read_padding(
      write, observer_, head, tail,
      [&](uint64_t at, uint8_t* to) { return read_unit(at, to, old_length); });
  if (!status.ok()) return status;
  IoVector padded =
      IoVector::concatenate(IoVector(head, write.head_bytes()), qiov);
  padded.append(
      IoVector(tail + (unit - write.tail_bytes()), write.tail_bytes()));
  return transfer(Direction::kWrite, padded, write.first_unit());
}

// Afterwards a write that ends at `end` is not cut short.
absl::Status ByteChannel::make_room_held(uint64_t end) {
  const uint64_t length = child_->length_bytes();
  if (end <= length) return absl::OkStatus();
  const bool grows = capabilities_.has(Capability::kGrows);
  if (!grows && !capabilities_.has(Capability::kSetLength))
    return no_room(*child_, end);
  // The write itself makes room if no piece of it can end in a partial unit.
  if (grows && ((end | length) & alignment_mask_) == 0) return absl::OkStatus();
  return child_->set_length(end, SetLengthMode::kGrowOnly);
}

// ---- Everything else --------------------------------------------------------

absl::Status ByteChannel::flush(Purpose purpose) {
  if (absl::Status status = observe(purpose, AccessKind::kFlush, ByteRange{});
      !status.ok()) {
    return status;
  }
  return child_->flush();
}

absl::Status ByteChannel::discard(Purpose purpose, ByteRange range) {
  if (absl::Status status = check_writable(range); !status.ok()) return status;
  if (absl::Status status = observe(purpose, AccessKind::kDiscard, range);
      !status.ok()) {
    return status;
  }
  if (!capabilities_.has(Capability::kDiscard)) return absl::OkStatus();
  const uint64_t length = child_->length_bytes();
  const std::optional<uint64_t> begin =
      checked_align_up(range.offset, limits_.request_alignment_bytes);
  const uint64_t end =
      range.end() >= length
          ? length
          : align_down(range.end(), limits_.request_alignment_bytes);
  if (!begin.has_value() || *begin >= end) return absl::OkStatus();
  const ByteRange aligned{*begin, end - *begin};
  const RangeTracker::Hold hold(&ranges_, aligned, Mode::kShared);
  return child_->discard(aligned);
}

absl::Status ByteChannel::write_zeroes(Purpose purpose, ByteRange range,
                                       WriteZeroesFlags flags) {
  if (absl::Status status = check_writable(range); !status.ok()) return status;
  if (absl::Status status = observe(purpose, AccessKind::kWriteZeroes, range);
      !status.ok()) {
    return status;
  }
  if (range.empty()) return absl::OkStatus();
  const uint64_t begin =
      align_down(range.offset, limits_.request_alignment_bytes);
  const uint64_t end = align_up(range.end(), limits_.request_alignment_bytes);
  const RangeTracker::Hold hold(
      &ranges_, ByteRange{begin, end - begin},
      is_ragged(range) ? Mode::kExclusive : Mode::kShared);
  return zero_held(range, flags);
}

absl::Status ByteChannel::zero_held(ByteRange range, WriteZeroesFlags flags) {
  const uint64_t length = child_->length_bytes();
  if (range.end() > length) {
    if (!capabilities_.has(Capability::kSetLength))
      return write_zero_bytes_held(range);
    absl::Status status =
        child_->set_length(range.end(), SetLengthMode::kGrowOnly);
    if (!status.ok()) return status;
    // What lies behind the old last unit is new, and zero already.
    const uint64_t end =
        std::clamp(stored_end(length), range.offset, range.end());
    range.length = end - range.offset;
  }
  const uint64_t unit = limits_.request_alignment_bytes;
  const uint64_t inner_begin =
      std::min(align_up(range.offset, unit), range.end());
  const uint64_t inner_end =
      std::max(align_down(range.end(), unit), inner_begin);
  const std::pair<uint64_t, uint64_t> ragged_ends[] = {
      {range.offset, inner_begin}, {inner_end, range.end()}};
  absl::Status status =
      zero_aligned_held({inner_begin, inner_end - inner_begin}, flags);
  for (const auto& [begin, end] : ragged_ends) {
    if (!status.ok()) return status;
    status = write_zero_bytes_held({begin, end - begin});
  }
  return status;
}

absl::Status ByteChannel::zero_aligned_held(ByteRange range,
                                            WriteZeroesFlags flags) {
  if (range.empty()) return absl::OkStatus();
  if (!capabilities_.has(Capability::kWriteZeroesMayUnmap))
    flags.may_unmap = false;
  const bool can_refuse = capabilities_.has(Capability::kWriteZeroesNoFallback);
  if (capabilities_.has(Capability::kWriteZeroes) &&
      (can_refuse || !flags.no_fallback)) {
    absl::Status status = child_->write_zeroes(range, flags);
    if (!absl::IsUnimplemented(status)) return status;
  }
  if (flags.no_fallback) {
    return absl::UnimplementedError(
        absl::StrCat("'", child_->filename(), "' would have to write ",
                     range.length, " bytes of zeroes one by one"));
  }
  return write_zero_bytes_held(range);
}

absl::Status ByteChannel::write_zero_bytes_held(ByteRange range) {
  while (!range.empty()) {
    const IoVector zeroes = zeroes_up_to(range.length);
    const ByteRange piece{range.offset, zeroes.length_bytes()};
    absl::Status status = is_ragged(piece)
                              ? write_ragged_held(zeroes, piece.offset)
                              : write_aligned_held(zeroes, piece.offset);
    if (!status.ok()) return status;
    range = ByteRange{piece.end(), range.length - piece.length};
  }
  return absl::OkStatus();
}

absl::StatusOr<BlockStatus> ByteChannel::block_status(ByteRange range) {
  if (absl::Status status =
          observe(Purpose::kBlockStatus, AccessKind::kRead, range);
      !status.ok()) {
    return status;
  }
  const uint64_t length = child_->length_bytes();
  BlockStatus result;
  if (range.offset >= length) {
    result.length = range.length;
    result.zero = true;
    result.end_of_image = true;
    return result;
  }
  range.length = std::min(range.length, length - range.offset);
  if (capabilities_.has(Capability::kBlockStatus)) {
    return child_->block_status(range, BlockStatusScope::kWholeChain);
  }
  result.length = range.length;
  result.allocated = true;
  result.data = true;
  result.end_of_image = range.end() == length;
  return result;
}

absl::Status ByteChannel::set_length(uint64_t length_bytes,
                                     SetLengthMode mode) {
  if (absl::Status status = check_writable(ByteRange{length_bytes, 0});
      !status.ok()) {
    return status;
  }
  absl::Status status = observe(Purpose::kSetLength, AccessKind::kSetLength,
                                ByteRange{0, length_bytes});
  if (!status.ok()) return status;
  const uint64_t old_length = child_->length_bytes();
  if (length_bytes == old_length) return status;
  if (length_bytes < old_length && mode == SetLengthMode::kGrowOnly)
    return status;
  if (length_bytes > old_length && !capabilities_.has(Capability::kSetLength)) {
    return no_room(*child_, length_bytes);
  }
  // A partial unit must not come into being under a write to it.
  const uint64_t last_unit =
      align_down(length_bytes, limits_.request_alignment_bytes);
  std::optional<RangeTracker::Hold> hold;
  if (last_unit != length_bytes) {
    hold.emplace(&ranges_,
                 ByteRange{last_unit, limits_.request_alignment_bytes},
                 Mode::kExclusive);
  }
  return child_->set_length(length_bytes, mode);
}

// ---- Checks -----------------------------------------------------------------

absl::Status ByteChannel::observe(Purpose purpose, AccessKind kind,
                                  ByteRange range) {
  if (observer_ == nullptr) return absl::OkStatus();
  return observer_->before_access(Access{purpose, kind, range});
}

absl::Status ByteChannel::check_writable(ByteRange range) const {
  const std::optional<uint64_t> end = checked_add(range.offset, range.length);
  // Rounded up to whole units, it must still fit.
  if (!end.has_value() || !checked_add(*end, alignment_mask_).has_value()) {
    return range_overflows(range.offset, range.length);
  }
  if (!child_->read_only()) return absl::OkStatus();
  return errno_status(
      EROFS, absl::StrCat("'", child_->filename(), "' is open read-only"));
}

bool ByteChannel::is_ragged(ByteRange range) const {
  return ((range.offset | range.length) & alignment_mask_) != 0;
}

bool ByteChannel::is_direct(const IoVector& qiov, uint64_t offset) const {
  if (is_ragged(ByteRange{offset, qiov.length_bytes()})) return false;
  if (limits_.memory_alignment_bytes > 1 &&
      !qiov.is_aligned(limits_.memory_alignment_bytes)) {
    return false;
  }
  if (limits_.max_segments > 0 && qiov.segment_count() > limits_.max_segments)
    return false;
  return limits_.max_transfer_bytes == 0 ||
         qiov.length_bytes() <= limits_.max_transfer_bytes;
}

uint64_t ByteChannel::stored_end(uint64_t child_length_bytes) const {
  return checked_align_up(child_length_bytes, limits_.request_alignment_bytes)
      .value_or(std::numeric_limits<uint64_t>::max() - alignment_mask_);
}

// ---- Whole units to and from the child --------------------------------------

absl::Status ByteChannel::transfer(Direction direction, const IoVector& qiov,
                                   uint64_t offset) {
  if (is_direct(qiov, offset)) return call_child(direction, qiov, offset);
  if (!qiov.is_aligned(limits_.memory_alignment_bytes)) {
    return transfer_bounced(direction, qiov, offset);
  }
  return transfer_split(direction, qiov, offset);
}

absl::Status ByteChannel::transfer_split(Direction direction,
                                         const IoVector& qiov,
                                         uint64_t offset) {
  uint64_t done = 0;
  while (done < qiov.length_bytes()) {
    const IoVector rest = qiov.slice(done, qiov.length_bytes() - done);
    uint64_t bytes = direct_prefix_bytes(rest);
    absl::Status status;
    if (bytes > 0) {
      status = call_child(direction, rest.slice(0, bytes), offset + done);
    } else {
      // A single unit has too many segments.
      bytes = limits_.request_alignment_bytes;
      status = transfer_bounced(direction, rest.slice(0, bytes), offset + done);
    }
    if (!status.ok()) return status;
    done += bytes;
  }
  return absl::OkStatus();
}

absl::Status ByteChannel::transfer_bounced(Direction direction,
                                           const IoVector& qiov,
                                           uint64_t offset) {
  uint64_t chunk = kMaxBounceBytes;
  if (limits_.max_transfer_bytes > 0)
    chunk = std::min(chunk, limits_.max_transfer_bytes);
  chunk = std::max<uint64_t>(align_down(chunk, limits_.request_alignment_bytes),
                             limits_.request_alignment_bytes);
  chunk = std::min(chunk, qiov.length_bytes());
  const AlignedBufferPool::Lease buffer = buffers_.take(chunk);
  for (uint64_t done = 0; done < qiov.length_bytes(); done += chunk) {
    const uint64_t bytes = std::min(chunk, qiov.length_bytes() - done);
    if (direction == Direction::kWrite)
      qiov.copy_to(done, buffer.data(), bytes);
    absl::Status status =
        call_child(direction, IoVector(buffer.data(), bytes), offset + done);
    if (!status.ok()) return status;
    if (direction == Direction::kRead)
      qiov.copy_from(done, buffer.data(), bytes);
  }
  return absl::OkStatus();
}

absl::Status ByteChannel::call_child(Direction direction, const IoVector& qiov,
                                     uint64_t offset) {
  const Sector sector = Sector::from_byte_offset(offset);
  return direction == Direction::kRead ? child_->read(qiov, sector)
                                       : child_->write(qiov, sector);
}

// How much of the front of `qiov` fits the child's limits, in whole units.
uint64_t ByteChannel::direct_prefix_bytes(const IoVector& qiov) const {
  uint64_t bytes = qiov.length_bytes();
  if (limits_.max_transfer_bytes > 0)
    bytes = std::min(bytes, limits_.max_transfer_bytes);
  if (limits_.max_segments > 0 && qiov.segment_count() > limits_.max_segments) {
    uint64_t in_segments = 0;
    for (size_t i = 0; i < limits_.max_segments; ++i)
      in_segments += qiov.segment(i).iov_len;
    bytes = std::min(bytes, in_segments);
  }
  return align_down(bytes, limits_.request_alignment_bytes);
}

}  // namespace spindle

#include "engine/request_executor.h"

#include <algorithm>
#include <optional>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/write_padding.h"

namespace spindle {
namespace {

using Direction = DriverTransfer::Direction;
using Hold = RangeTracker::Hold;
using Mode = RangeTracker::Mode;

Hold hold_range(RangeTracker* ranges, ByteRange range, Mode mode,
                const RequestExecutor::Attempt& attempt) {
  return attempt.may_wait ? Hold(ranges, range, mode)
                          : Hold(ranges, range, mode, RangeTracker::kTry);
}

// Not an error: nobody looks at it.
absl::Status give_up(RequestExecutor::Attempt* attempt) {
  attempt->gave_up = true;
  return absl::AbortedError("");
}

}  // namespace

RequestExecutor::RequestExecutor(BlockDriver* driver, CacheMode cache_mode,
                                 DetectZeroes detect_zeroes)
    : driver_(driver),
      cache_mode_(cache_mode),
      transfer_(driver),
      detect_zeroes_(detect_zeroes) {
  refresh();
}

void RequestExecutor::refresh() {
  transfer_.refresh();
  capabilities_ = driver_->capabilities();
  if (capabilities_.has(Capability::kWriteCompressed)) {
    cluster_bytes_ =
        driver_->info().cluster_size_bytes.value_or(kSectorSizeBytes);
  }
  length_bytes_.store(driver_->length_bytes(), std::memory_order_relaxed);
  read_only_.store(driver_->read_only(), std::memory_order_relaxed);
}

// ---- Checks -----------------------------------------------------------------

absl::Status RequestExecutor::check(const RequestSpec& spec) const {
  if (spec.kind == RequestKind::kFlush) return absl::OkStatus();
  if (holds_ranges(spec.kind) && read_only()) {
    return absl::PermissionDeniedError("the device is read-only");
  }
  if (spec.by_sector && !is_sector_aligned(spec.length)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the length, ", spec.length, ", is not a multiple of 512"));
  }
  absl::Status status = check_range(spec);
  if (status.ok() && spec.kind == RequestKind::kWriteCompressed)
    status = check_compressed(spec);
  return status;
}

// REQUIRES: check_range() is OK.
absl::Status RequestExecutor::check_compressed(const RequestSpec& spec) const {
  if (!capabilities_.has(Capability::kWriteCompressed))
    return absl::UnimplementedError("the driver cannot compress");
  const uint64_t end = spec.offset + spec.length;
  if (is_aligned(spec.offset, cluster_bytes_) &&
      (end >= length_bytes() || is_aligned(end, cluster_bytes_))) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("offset ", spec.offset, " and length ", spec.length,
                   " of a compressed write are not whole clusters of ",
                   cluster_bytes_, " bytes"));
}

absl::Status RequestExecutor::check_range(const RequestSpec& spec) const {
  const uint64_t length = length_bytes();
  // A transfer by the byte ends at the last byte.  Everything that guests ask
  // for by the sector may reach to the end of the last, partial one.
  const bool by_byte = !spec.by_sector && (spec.kind == RequestKind::kRead ||
                                           spec.kind == RequestKind::kWrite);
  const uint64_t limit = by_byte ? length : align_up(length, kSectorSizeBytes);
  const std::optional<ByteRange> range =
      make_byte_range(spec.offset, spec.length);
  if (!range.has_value() || range->end() > limit) {
    return absl::OutOfRangeError(
        absl::StrCat("offset ", spec.offset, " and length ", spec.length,
                     " reach beyond the device's length, ", length));
  }
  if (spec.kind == RequestKind::kBlockStatus && range->empty()) {
    return absl::InvalidArgumentError("the block status of an empty range");
  }
  return absl::OkStatus();
}

bool RequestExecutor::is_aligned_to_driver(uint64_t offset,
                                           uint64_t length) const {
  return is_aligned(offset | length,
                    transfer_.limits().request_alignment_bytes);
}

ByteRange RequestExecutor::clamp(ByteRange range) const {
  const uint64_t end = std::min(range.end(), length_bytes());
  return {range.offset, end > range.offset ? end - range.offset : 0};
}

ByteRange RequestExecutor::widen(ByteRange range) const {
  const uint64_t unit = transfer_.limits().request_alignment_bytes;
  const uint64_t begin = align_down(range.offset, unit);
  return {begin, align_up(range.end(), unit) - begin};
}

uint64_t RequestExecutor::transfer_end(uint64_t end) const {
  if (end < length_bytes()) return end;
  return align_up(end, transfer_.limits().request_alignment_bytes);
}

// ---- Requests ---------------------------------------------------------------

bool RequestExecutor::must_be_durable(const RequestSpec& spec) const {
  return spec.write_flags.fua || is_writethrough(cache_mode());
}

// Of writes only those that are nothing but transfers: a read-modify-write has
// two ends, and whether zeroes are written is asked of each request.
bool RequestExecutor::adjoin(const RequestSpec& last,
                             const RequestSpec& next) const {
  if (last.kind != next.kind || next.offset != last.offset + last.length ||
      last.length == 0 || next.length == 0) {
    return false;
  }
  if (last.kind == RequestKind::kRead) return true;
  return last.kind == RequestKind::kWrite &&
         last.write_flags.fua == next.write_flags.fua &&
         detect_zeroes_.load(std::memory_order_relaxed) == DetectZeroes::kOff &&
         is_aligned_to_driver(last.offset, last.length) &&
         is_aligned_to_driver(next.offset, next.length);
}

uint64_t RequestExecutor::try_in_place(const RequestSpec& spec,
                                       const IoVector& qiov) {
  if (qiov.empty() || !is_aligned_to_driver(spec.offset, spec.length) ||
      !transfer_.fits(qiov)) {
    return 0;
  }
  const Sector sector = Sector::from_byte_offset(spec.offset);
  if (spec.kind == RequestKind::kRead) {
    return capabilities_.has(Capability::kTryRead)
               ? driver_->try_read(qiov, sector)
               : 0;
  }
  if (spec.kind != RequestKind::kWrite ||
      !capabilities_.has(Capability::kTryWrite) || must_be_durable(spec) ||
      detect_zeroes_.load(std::memory_order_relaxed) != DetectZeroes::kOff) {
    return 0;
  }
  const Hold hold(&ranges_, spec.range(), Mode::kShared, RangeTracker::kTry);
  return hold.held() ? driver_->try_write(qiov, sector) : 0;
}

absl::Status RequestExecutor::run(const RequestSpec& spec, const IoVector& qiov,
                                  uint64_t done_bytes,
                                  BlockStatus* block_status, Attempt* attempt) {
  switch (spec.kind) {
    case RequestKind::kRead:
      if (done_bytes == 0) return read(qiov, spec.offset);
      return read(qiov.slice(done_bytes, spec.length - done_bytes),
                  spec.offset + done_bytes);
    case RequestKind::kWrite:
      if (done_bytes == 0) return write(spec, qiov, spec.offset, attempt);
      return write(spec, qiov.slice(done_bytes, spec.length - done_bytes),
                   spec.offset + done_bytes, attempt);
    case RequestKind::kWriteCompressed:
      return write(spec, qiov, spec.offset, attempt);
    case RequestKind::kFlush:
      return flush();
    case RequestKind::kDiscard:
      return discard(clamp(spec.range()), attempt);
    case RequestKind::kWriteZeroes: {
      absl::Status status =
          write_zeroes(clamp(spec.range()), spec.zeroes_flags, attempt);
      if (status.ok() && must_be_durable(spec)) status = flush();
      return status;
    }
    case RequestKind::kBlockStatus: {
      absl::StatusOr<BlockStatus> result =
          this->block_status(spec.range(), spec.scope);
      if (result.ok()) *block_status = *result;
      return result.status();
    }
  }
  return absl::InternalError("a request of unknown kind");
}

// ---- Reads ------------------------------------------------------------------

absl::Status RequestExecutor::read(const IoVector& qiov, uint64_t offset) {
  if (qiov.empty()) return absl::OkStatus();
  if (is_aligned_to_driver(offset, qiov.length_bytes())) {
    return transfer_.transfer(Direction::kRead, qiov, offset);
  }
  return read_ragged(qiov, offset);
}

// One aligned transfer, whose first and last bytes go into buffers that nobody
// looks at but the driver: one that decrypts needs whole sectors, so the two
// must not overlap.
absl::Status RequestExecutor::read_ragged(const IoVector& qiov,
                                          uint64_t offset) {
  const uint64_t alignment = transfer_.limits().request_alignment_bytes;
  const uint64_t begin = align_down(offset, alignment);
  const uint64_t end = offset + qiov.length_bytes();
  const AlignedBufferPool::Lease padding = transfer_.take_buffer(2 * alignment);
  IoVector padded(padding.data(), offset - begin);
  padded.append(qiov);
  padded.append(
      IoVector(padding.data() + alignment, align_up(end, alignment) - end));
  return transfer_.transfer(Direction::kRead, padded, begin);
}

// ---- Writes -----------------------------------------------------------------

absl::Status RequestExecutor::write(const RequestSpec& spec,
                                    const IoVector& qiov, uint64_t offset,
                                    Attempt* attempt) {
  if (qiov.empty()) return absl::OkStatus();
  const DetectZeroes detect = detect_zeroes_.load(std::memory_order_relaxed);
  absl::Status status;
  if (detect != DetectZeroes::kOff && qiov.is_zero()) {
    const WriteZeroesFlags flags{.may_unmap = detect == DetectZeroes::kUnmap};
    status = write_zeroes(clamp({offset, qiov.length_bytes()}), flags, attempt);
  } else {
    status = spec.kind == RequestKind::kWriteCompressed
                 ? put_compressed(qiov, offset, attempt)
                 : put(qiov, offset, attempt);
  }
  if (status.ok() && must_be_durable(spec)) status = flush();
  return status;
}

absl::Status RequestExecutor::put(const IoVector& qiov, uint64_t offset,
                                  Attempt* attempt) {
  if (!is_aligned_to_driver(offset, qiov.length_bytes()))
    return put_ragged(qiov, offset, attempt);
  const Hold hold = hold_range(&ranges_, {offset, qiov.length_bytes()},
                               Mode::kShared, *attempt);
  if (!hold.held()) return give_up(attempt);
  return transfer_.transfer(Direction::kWrite, qiov, offset);
}

absl::Status RequestExecutor::put_ragged(const IoVector& qiov, uint64_t offset,
                                         Attempt* attempt) {
  const Hold hold = hold_range(&ranges_, widen({offset, qiov.length_bytes()}),
                               Mode::kExclusive, *attempt);
  if (!hold.held()) return give_up(attempt);
  return read_modify_write(qiov, offset);
}

// Reads the blocks at the two ends, and writes everything in one transfer.
// REQUIRES: the range, widened to whole blocks, is held exclusively.
absl::Status RequestExecutor::read_modify_write(const IoVector& qiov,
                                                uint64_t offset) {
  const uint64_t unit = transfer_.limits().request_alignment_bytes;
  const UnalignedWrite write{
      .begin = offset, .end = offset + qiov.length_bytes(), .unit_bytes = unit};
  const AlignedBufferPool::Lease buffer = transfer_.take_buffer(2 * unit);
  uint8_t* const head = buffer.data();
  uint8_t* const tail = write.has_one_unit() ? head : head + unit;
  const absl::Status status = read_padding(
      write, driver_->access_observer(), head, tail,
      [&](uint64_t at, uint8_t* to) {
        return transfer_.transfer(Direction::kRead, IoVector(to, unit), at);
      });
  if (!status.ok()) return status;
  IoVector padded(head, write.head_bytes());
  padded.append(qiov);
  padded.append(
      IoVector(tail + (unit - write.tail_bytes()), write.tail_bytes()));
  return transfer_.transfer(Direction::kWrite, padded, write.first_unit());
}

// ---- Compressed writes ------------------------------------------------------

absl::Status RequestExecutor::put_compressed(const IoVector& qiov,
                                             uint64_t offset,
                                             Attempt* attempt) {
  const Hold hold = hold_range(&ranges_, {offset, qiov.length_bytes()},
                               Mode::kShared, *attempt);
  if (!hold.held()) return give_up(attempt);
  if (!is_aligned_to_driver(offset, qiov.length_bytes()) ||
      !transfer_.fits(qiov)) {
    return put_compressed_bounced(qiov, offset);
  }
  return driver_->write_compressed(qiov, Sector::from_byte_offset(offset));
}

// Cluster by cluster, through a buffer that the driver can take.
absl::Status RequestExecutor::put_compressed_bounced(const IoVector& qiov,
                                                     uint64_t offset) {
  const AlignedBufferPool::Lease buffer = transfer_.take_buffer(cluster_bytes_);
  for (uint64_t done = 0; done < qiov.length_bytes();) {
    const uint64_t bytes = std::min(cluster_bytes_, qiov.length_bytes() - done);
    const uint64_t padded =
        align_up(bytes, transfer_.limits().request_alignment_bytes);
    qiov.copy_to(done, buffer.data(), bytes);
    std::fill_n(buffer.data() + bytes, padded - bytes, uint8_t{0});
    const absl::Status status =
        driver_->write_compressed(IoVector(buffer.data(), padded),
                                  Sector::from_byte_offset(offset + done));
    if (!status.ok()) return status;
    done += bytes;
  }
  return absl::OkStatus();
}

// ---- Zeroes -----------------------------------------------------------------

// Ragged ends are read, modified and written; what lies between is left to the
// driver.  The whole range is held from the start: a request that gives up must
// have done nothing yet, since it may be withdrawn, or overtaken, before it
// tries again.
absl::Status RequestExecutor::write_zeroes(ByteRange range,
                                           WriteZeroesFlags flags,
                                           Attempt* attempt) {
  if (range.empty()) return absl::OkStatus();
  const uint64_t alignment = transfer_.limits().request_alignment_bytes;
  const bool reaches_end = range.end() == length_bytes();
  const uint64_t middle_begin =
      std::min(align_up(range.offset, alignment), range.end());
  const uint64_t middle_end =
      reaches_end ? range.end()
                  : std::max(middle_begin, align_down(range.end(), alignment));
  const bool has_ragged =
      middle_begin > range.offset || middle_end < range.end();
  const Hold hold =
      hold_range(&ranges_, widen(range),
                 has_ragged ? Mode::kExclusive : Mode::kShared, *attempt);
  if (!hold.held()) return give_up(attempt);
  const ByteRange pieces[] = {{range.offset, middle_begin - range.offset},
                              {middle_end, range.end() - middle_end}};
  for (const ByteRange& ragged : pieces) {
    if (ragged.empty()) continue;
    const absl::Status status = flags.no_fallback
                                    ? write_zeroes_around(ragged, flags)
                                    : write_zeroes_ragged(ragged);
    if (!status.ok()) return status;
  }
  return write_zeroes_aligned({middle_begin, middle_end - middle_begin}, flags);
}

// The ends that the driver may not be able to do quickly are pieces of their
// own, so that they alone are written by hand.
// REQUIRES: the range is held.
absl::Status RequestExecutor::write_zeroes_aligned(ByteRange range,
                                                   WriteZeroesFlags flags) {
  const uint64_t alignment =
      std::max(transfer_.limits().write_zeroes_alignment_bytes,
               transfer_.limits().request_alignment_bytes);
  const uint64_t first =
      std::min(align_up(range.offset, alignment), range.end());
  // Also at the end of the device: what goes with it may be more than its part
  // of the block.
  const uint64_t last = std::max(first, align_down(range.end(), alignment));
  const ByteRange pieces[] = {{range.offset, first - range.offset},
                              {first, last - first},
                              {last, range.end() - last}};
  for (const ByteRange& piece : pieces) {
    if (piece.empty()) continue;
    const absl::Status status = write_zeroes_piece(piece, flags);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status RequestExecutor::write_zeroes_piece(ByteRange range,
                                                 WriteZeroesFlags flags) {
  const bool can = capabilities_.has(Capability::kWriteZeroes) &&
                   (!flags.no_fallback ||
                    capabilities_.has(Capability::kWriteZeroesNoFallback));
  WriteZeroesFlags understood = flags;
  understood.may_unmap =
      flags.may_unmap && capabilities_.has(Capability::kWriteZeroesMayUnmap);
  // What the driver cannot do may be its beginning alone.
  while (!range.empty()) {
    absl::Status status =
        absl::UnimplementedError("the driver cannot write zeroes quickly");
    if (can) status = driver_->write_zeroes(range, understood);
    if (!absl::IsUnimplemented(status) || flags.no_fallback) return status;
    const uint64_t length =
        std::min(range.length, DriverTransfer::kMostZeroesAtOnce);
    status = transfer_.write_zeroes_by_hand(
        range.offset, transfer_end(range.offset + length) - range.offset);
    if (!status.ok()) return status;
    range = {range.offset + length, range.length - length};
  }
  return absl::OkStatus();
}

// Quick where what is beside the range, in its unit, reads as zeroes: then that
// becomes zero as a whole; or where a unit is the least that the driver makes
// zero quickly anyhow.
// REQUIRES: `range` lies within one block of the request alignment, which is
// held exclusively.
absl::Status RequestExecutor::write_zeroes_around(ByteRange range,
                                                  WriteZeroesFlags flags) {
  const uint64_t unit = transfer_.limits().request_alignment_bytes;
  if (!capabilities_.has(Capability::kWriteZeroesNoFallback))
    return absl::UnimplementedError("the driver cannot write zeroes quickly");
  if (transfer_.limits().write_zeroes_alignment_bytes <= unit)
    return write_zeroes_ragged(range);
  const uint64_t begin = align_down(range.offset, unit);
  const ByteRange units{
      begin, std::min(align_up(range.end(), unit), length_bytes()) - begin};
  const absl::StatusOr<BlockStatus> status =
      driver_->block_status(units, BlockStatusScope::kWholeChain);
  if (!status.ok()) return status.status();
  if (!status->zero || status->length < units.length)
    return absl::UnimplementedError("a part of a sector must be written");
  return driver_->write_zeroes(
      units, {.may_unmap = flags.may_unmap &&
                           capabilities_.has(Capability::kWriteZeroesMayUnmap),
              .no_fallback = true});
}

// REQUIRES: as above.
absl::Status RequestExecutor::write_zeroes_ragged(ByteRange range) {
  const AlignedBufferPool::Lease buffer = transfer_.take_buffer(range.length);
  std::fill_n(buffer.data(), range.length, uint8_t{0});
  return read_modify_write(IoVector(buffer.data(), range.length), range.offset);
}

// ---- Everything else --------------------------------------------------------

absl::Status RequestExecutor::discard(ByteRange range, Attempt* attempt) {
  if (!capabilities_.has(Capability::kDiscard)) return absl::OkStatus();
  const uint64_t alignment = transfer_.limits().request_alignment_bytes;
  const uint64_t begin = align_up(range.offset, alignment);
  const uint64_t end = range.end() == length_bytes()
                           ? range.end()
                           : align_down(range.end(), alignment);
  if (begin >= end) return absl::OkStatus();
  const Hold hold = hold_range(&ranges_, {begin, transfer_end(end) - begin},
                               Mode::kShared, *attempt);
  if (!hold.held()) return give_up(attempt);
  return driver_->discard({begin, end - begin});
}

absl::StatusOr<BlockStatus> RequestExecutor::block_status(
    ByteRange range, BlockStatusScope scope) {
  const ByteRange inside = clamp(range);
  BlockStatus guess;
  guess.end_of_image = range.end() >= length_bytes();
  if (inside.empty()) {  // the rest of the last sector
    guess.length = range.length;
    guess.zero = true;
    return guess;
  }
  if (!capabilities_.has(Capability::kBlockStatus)) {
    guess.length = inside.length;
    guess.allocated = true;
    guess.data = true;
    return guess;
  }
  absl::StatusOr<BlockStatus> status = driver_->block_status(inside, scope);
  if (!status.ok()) return status;
  ABSL_ASSERT(status->length >= 1 && status->length <= inside.length);
  status->end_of_image = inside.offset + status->length == length_bytes();
  return status;
}

absl::Status RequestExecutor::flush() {
  if (cache_mode() == CacheMode::kUnsafe || read_only())
    return absl::OkStatus();
  return driver_->flush();
}

}  // namespace spindle

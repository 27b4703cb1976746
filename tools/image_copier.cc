#include "tools/image_copier.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "absl/numeric/bits.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"
#include "engine/completion_queue.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tools/sector_status.h"

namespace spindle {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{2} << 20;
constexpr uint64_t kPageBytes = 4096;
// What completes without a piece of its own: zeroes.
constexpr uint64_t kNoPiece = ~uint64_t{0};

class Copier {
 public:
  Copier(BlockDevice& source, BlockDevice& target, const CopyOptions& options)
      : source_(source),
        target_(target),
        options_(options),
        end_(whole_sectors_bytes(source)),
        backing_end_(backing_end_of(target, options)),
        run_alignment_bytes_(run_alignment_of(target, options)),
        unit_bytes_(unit_of(target, options)),
        piece_bytes_(std::max(kPieceBytes, unit_bytes_)),
        start_(absl::Now()) {
    const size_t count = std::max<size_t>(options.max_pieces, 2);
    for (size_t i = 0; i < count; ++i) pieces_.emplace_back(piece_bytes_);
  }

  absl::Status run();

 private:
  struct Piece {
    explicit Piece(size_t bytes) : buffer(bytes) {}
    std::vector<uint8_t> buffer;
    size_t writes = 0;  // under way
  };
  // What becomes of some bytes of the source.
  enum class Fate { kCopied, kZeroed, kLeftToBacking };
  struct Run {
    Fate fate = Fate::kCopied;
    uint64_t bytes = 0;
  };

  static uint64_t cluster_of(BlockDevice& target) {
    return target.driver().info().cluster_size_bytes.value_or(kSectorSizeBytes);
  }
  static uint64_t backing_end_of(BlockDevice& target,
                                 const CopyOptions& options) {
    const auto backing = target.driver().backing();
    if (!options.target_has_backing || backing == nullptr) return 0;
    return align_up(backing->length_bytes(), kSectorSizeBytes);
  }
  // Where runs of zeroes or of the backing file's bytes may end.
  static uint64_t run_alignment_of(BlockDevice& target,
                                   const CopyOptions& options) {
    if (options.compress) return cluster_of(target);
    // A cluster that is written in part is whole afterwards anyway.
    return options.target_reads_as_zeroes
               ? target.driver().limits().write_zeroes_alignment_bytes
               : kSectorSizeBytes;
  }
  // What of a piece is written, or not, as one: a multiple of it.
  static uint64_t unit_of(BlockDevice& target, const CopyOptions& options) {
    if (options.compress) return cluster_of(target);
    return std::max<uint64_t>(
        absl::bit_floor(std::max(options.min_zeroes_bytes, kSectorSizeBytes)),
        target.driver().limits().write_zeroes_alignment_bytes);
  }

  absl::Status copy();
  absl::Status copy_run(uint64_t offset, const Run& run);
  // Bytes from `offset` on that share their fate; no more than a piece of those
  // that are copied.
  absl::StatusOr<Run> run_at(uint64_t offset);
  absl::StatusOr<Run> status_at(uint64_t offset);
  absl::StatusOr<size_t> free_piece();
  void submit(size_t piece, uint64_t offset, uint64_t bytes);
  void submit_run(size_t piece, uint64_t into, uint64_t offset, uint64_t bytes);
  void zero(ByteRange range);
  void keep_to_rate(uint64_t offset) const;
  // Waits until one write, or all, have ended.
  void wait_for_write();
  void wait_for_all() {
    while (in_flight_ != 0) wait_for_write();
  }

  BlockDevice& source_;
  BlockDevice& target_;
  const CopyOptions& options_;
  const uint64_t end_;
  const uint64_t backing_end_;
  const uint64_t run_alignment_bytes_;
  const uint64_t unit_bytes_;
  const uint64_t piece_bytes_;
  const absl::Time start_;
  std::vector<Piece> pieces_;
  size_t in_flight_ = 0;
  absl::Status failure_;  // the first of a write
};

absl::Status Copier::run() {
  absl::Status status = copy();
  // The writes use the pieces.
  wait_for_all();
  return status.ok() ? failure_ : status;
}

absl::Status Copier::copy() {
  for (uint64_t offset = 0; offset < end_ && failure_.ok();) {
    if (options_.progress) {
      options_.progress(static_cast<double>(offset) /
                        static_cast<double>(end_));
    }
    const absl::StatusOr<Run> run = run_at(offset);
    if (!run.ok()) return run.status();
    absl::Status status = copy_run(offset, *run);
    if (!status.ok()) return status;
    offset += run->bytes;
    keep_to_rate(offset);
  }
  return absl::OkStatus();
}

absl::Status Copier::copy_run(uint64_t offset, const Run& run) {
  if (run.fate == Fate::kLeftToBacking) return absl::OkStatus();
  if (run.fate == Fate::kZeroed) {
    if (options_.in_order) wait_for_all();
    zero({offset, run.bytes});
    return absl::OkStatus();
  }
  const absl::StatusOr<size_t> piece = free_piece();
  if (!piece.ok()) return piece.status();
  const absl::Status status =
      source_.read(IoVector(pieces_[*piece].buffer.data(), run.bytes),
                   Sector::from_byte_offset(offset));
  if (!status.ok()) {
    return with_context(status,
                        absl::StrCat("error while reading at byte ", offset));
  }
  if (options_.in_order) wait_for_all();
  submit(*piece, offset, run.bytes);
  return absl::OkStatus();
}

absl::StatusOr<Copier::Run> Copier::run_at(uint64_t offset) {
  absl::StatusOr<Run> run = status_at(offset);
  if (!run.ok() || run->fate != Fate::kCopied) return run;
  // Zeroes that begin or end where the source's runs do need no minimum.
  const bool may_merge = options_.min_zeroes_bytes <= kPageBytes;
  while (may_merge && run->bytes < piece_bytes_ && offset + run->bytes < end_) {
    const absl::StatusOr<Run> next = status_at(offset + run->bytes);
    if (!next.ok()) return next;
    if (next->fate != Fate::kCopied) break;
    run->bytes += next->bytes;
  }
  run->bytes = std::min(run->bytes, piece_bytes_);
  return run;
}

absl::StatusOr<Copier::Run> Copier::status_at(uint64_t offset) {
  uint64_t limit = end_;
  if (offset < backing_end_) limit = std::min(limit, backing_end_);
  const absl::StatusOr<BlockStatus> status = sector_status(
      source_, {offset, limit - offset},
      options_.target_has_backing ? BlockStatusScope::kThisLayer
                                  : BlockStatusScope::kWholeChain);
  if (!status.ok()) {
    return with_context(
        status.status(),
        absl::StrCat("error while reading block status at offset ", offset));
  }
  Run run{.fate = Fate::kCopied, .bytes = status->length};
  if (status->zero) {
    // Behind the end of the backing file there are zeroes already.
    const bool already = options_.target_has_backing && offset >= backing_end_;
    if (already) {
      run.fate = Fate::kLeftToBacking;
    } else if (options_.min_zeroes_bytes != 0) {
      run.fate = Fate::kZeroed;
    }
  } else if (options_.target_has_backing && !status->allocated) {
    run.fate = Fate::kLeftToBacking;
  }
  const uint64_t run_end = offset + run.bytes;
  if (run_end == end_) return run;
  const uint64_t aligned = align_down(run_end, run_alignment_bytes_);
  if (run.fate != Fate::kCopied && aligned > offset) {
    run.bytes = aligned - offset;
  } else if (run.fate != Fate::kCopied || options_.compress) {
    // Too short, or it ends within a cluster.
    run.fate = Fate::kCopied;
    run.bytes =
        std::min(align_up(run_end, run_alignment_bytes_), end_) - offset;
  }
  return run;
}

absl::StatusOr<size_t> Copier::free_piece() {
  while (true) {
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (pieces_[i].writes == 0) return i;
    }
    wait_for_write();
    if (!failure_.ok()) return failure_;
  }
}

void Copier::submit(size_t piece, uint64_t offset, uint64_t bytes) {
  uint8_t* const data = pieces_[piece].buffer.data();
  // Units are counted from the start of the image.
  const auto unit_end = [&](uint64_t at) {
    return std::min(align_down(offset + at, unit_bytes_) + unit_bytes_ - offset,
                    bytes);
  };
  const auto is_zero = [&](uint64_t at) {
    return options_.min_zeroes_bytes != 0 &&
           IoVector(data + at, unit_end(at) - at).is_zero();
  };
  // Each takes its clusters before the next does; compressed data are packed in
  // any order.
  const bool one_by_one = options_.in_order && !options_.compress;
  if (!one_by_one) target_.plug();
  for (uint64_t at = 0; at < bytes;) {
    if (one_by_one) wait_for_all();
    const bool zeroes = is_zero(at);
    uint64_t run_end = unit_end(at);
    // Clusters are compressed side by side.
    while (run_end < bytes && (zeroes || !options_.compress) &&
           is_zero(run_end) == zeroes) {
      run_end = unit_end(run_end);
    }
    if (zeroes) {
      zero({offset + at, run_end - at});
    } else {
      submit_run(piece, at, offset + at, run_end - at);
    }
    at = run_end;
  }
  if (!one_by_one) target_.unplug();
}

void Copier::zero(ByteRange range) {
  if (options_.target_reads_as_zeroes) return;
  ++in_flight_;
  target_.aio_write_zeroes(range, {.may_unmap = true, .no_fallback = false},
                           kNoPiece);
}

void Copier::keep_to_rate(uint64_t offset) const {
  if (options_.bytes_per_second == 0) return;
  absl::SleepFor(start_ +
                 absl::Seconds(static_cast<double>(offset) /
                               static_cast<double>(options_.bytes_per_second)) -
                 absl::Now());
}

void Copier::submit_run(size_t piece, uint64_t into, uint64_t offset,
                        uint64_t bytes) {
  const IoVector qiov(pieces_[piece].buffer.data() + into, bytes);
  const Sector sector = Sector::from_byte_offset(offset);
  ++pieces_[piece].writes;
  ++in_flight_;
  if (options_.compress) {
    target_.aio_write_compressed(sector, qiov, piece);
  } else {
    target_.aio_writev(sector, qiov, piece);
  }
}

void Copier::wait_for_write() {
  std::array<Completion, 64> done;
  const size_t count = target_.completion_queue().wait(
      1, absl::InfiniteDuration(), absl::MakeSpan(done));
  for (size_t i = 0; i < count; ++i) {
    --in_flight_;
    if (done[i].user_data != kNoPiece) --pieces_[done[i].user_data].writes;
    if (failure_.ok() && !done[i].status.ok())
      failure_ = with_context(done[i].status, "error while writing");
  }
}

}  // namespace

absl::Status copy_image(BlockDevice& source, BlockDevice& target,
                        const CopyOptions& options) {
  return Copier(source, target, options).run();
}

}  // namespace spindle

#include "tools/image_copier.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"
#include "engine/completion_queue.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{2} << 20;
// Shorter runs of zeroes among data are written.
constexpr uint64_t kMinZeroesBytes = 4096;

class Copier {
 public:
  Copier(BlockDevice& source, BlockDevice& target, const CopyOptions& options)
      : source_(source),
        target_(target),
        options_(options),
        end_(align_up(source.length_bytes(), kSectorSizeBytes)),
        unit_bytes_(unit_of(target, options)),
        piece_bytes_(std::max(kPieceBytes, unit_bytes_)) {
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

  // What is written, or not, as one: a multiple of it.
  static uint64_t unit_of(BlockDevice& target, const CopyOptions& options) {
    if (!options.compress) {
      return std::max<uint64_t>(
          kMinZeroesBytes,
          target.driver().limits().write_zeroes_alignment_bytes);
    }
    return target.driver().info().cluster_size_bytes.value_or(kMinZeroesBytes);
  }

  absl::Status copy();
  // How many bytes from `offset` on need not be copied; whole units, unless
  // they reach to the end.
  absl::StatusOr<uint64_t> zeroes_at(uint64_t offset);
  absl::StatusOr<size_t> free_piece();
  void submit(size_t piece, uint64_t offset, uint64_t bytes);
  void submit_run(size_t piece, uint64_t into, uint64_t offset, uint64_t bytes);
  // Waits until one write, or all, have ended.
  void wait_for_write();
  void wait_for_all() {
    while (in_flight_ != 0) wait_for_write();
  }

  BlockDevice& source_;
  BlockDevice& target_;
  const CopyOptions& options_;
  const uint64_t end_;
  const uint64_t unit_bytes_;
  const uint64_t piece_bytes_;
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
    const absl::StatusOr<uint64_t> zeroes = zeroes_at(offset);
    if (!zeroes.ok()) return zeroes.status();
    if (*zeroes != 0) {
      offset += *zeroes;
      continue;
    }
    const absl::StatusOr<size_t> piece = free_piece();
    if (!piece.ok()) return piece.status();
    const uint64_t bytes = std::min(piece_bytes_, end_ - offset);
    const absl::Status status =
        source_.read(IoVector(pieces_[*piece].buffer.data(), bytes),
                     Sector::from_byte_offset(offset));
    if (!status.ok()) {
      return with_context(status,
                          absl::StrCat("error while reading at byte ", offset));
    }
    if (options_.in_order) wait_for_all();
    submit(*piece, offset, bytes);
    offset += bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Copier::zeroes_at(uint64_t offset) {
  // Where the last sector is partial, to its end.
  const absl::StatusOr<BlockStatus> status =
      source_.block_status({offset, end_ - offset});
  if (!status.ok()) {
    return with_context(
        status.status(),
        absl::StrCat("error while reading block status at offset ", offset));
  }
  if (!status->zero) return 0;
  const uint64_t zero_end = offset + status->length;
  if (zero_end >= source_.length_bytes()) return end_ - offset;
  const uint64_t last = align_down(zero_end, unit_bytes_);
  return last > offset ? last - offset : 0;
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
  const auto is_zero = [&](uint64_t at) {
    return IoVector(data + at, std::min(unit_bytes_, bytes - at)).is_zero();
  };
  target_.plug();
  for (uint64_t at = 0; at < bytes;) {
    if (is_zero(at)) {
      at += unit_bytes_;
      continue;
    }
    uint64_t run_end = std::min(at + unit_bytes_, bytes);
    // Clusters are compressed side by side.
    while (!options_.compress && run_end < bytes && !is_zero(run_end))
      run_end = std::min(run_end + unit_bytes_, bytes);
    submit_run(piece, at, offset + at, run_end - at);
    at = run_end;
  }
  target_.unplug();
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
    --pieces_[done[i].user_data].writes;
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

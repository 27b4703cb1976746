#include "engine/jobs/rebase.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/aligned_buffer.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/jobs/job_buffer.h"
#include "engine/jobs/sector_status.h"
#include "engine/run_pieces.h"
#include "engine/sector.h"

namespace spindle {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{1} << 20;
constexpr size_t kPiecesAtOnce = 4;
constexpr size_t kMaxHelpers = 4;

struct Piece {
  ByteRange range;
  AlignedBuffer before;  // as over the old backing file
  AlignedBuffer after;
  // Where they are not the same.
  std::vector<ByteRange> differences;
  absl::Status status;
};

class Rebase {
 public:
  Rebase(BlockDevice& overlay, BlockDevice* old_backing,
         BlockDevice* new_backing, const RebaseOptions& options)
      : overlay_(overlay),
        old_(old_backing),
        new_(new_backing),
        options_(options),
        end_(whole_sectors_bytes(overlay)) {}

  absl::Status run();

 private:
  // From `offset` on: bytes that must be looked at, or (not `looked_at`) that
  // need not.
  struct Run {
    uint64_t length = 0;
    bool looked_at = false;
  };
  absl::StatusOr<Run> run_at(uint64_t offset) const;
  // Fills `pieces` with what comes next, and moves `offset`.
  absl::Status find_pieces(uint64_t* offset, std::vector<Piece>* pieces,
                           size_t* count) const;
  void compare(Piece* piece) const;
  static absl::Status read(BlockDevice* device, ByteRange range,
                           AlignedBuffer* bytes);
  // What `range`, a part of the piece, is now.
  absl::Status write_data(const Piece& piece, ByteRange range) const;
  // The same beyond the end of the old backing file, with entries that take no
  // space.  An overlay without a backing file may say "zeroes" with no entry at
  // all, through which the new one would show: there data is written.
  absl::Status write_zeroes(const Piece& piece, ByteRange range) const;
  absl::Status write(const Piece& piece) const;

  BlockDevice& overlay_;
  BlockDevice* const old_;
  BlockDevice* const new_;
  const RebaseOptions& options_;
  const uint64_t end_;
};

absl::StatusOr<Rebase::Run> Rebase::run_at(uint64_t offset) const {
  const ByteRange rest{offset, std::min(end_ - offset, kPieceBytes)};
  const absl::StatusOr<BlockStatus> own =
      sector_status(overlay_, rest, BlockStatusScope::kThisLayer);
  if (!own.ok()) return own.status();
  if (own->allocated) return Run{own->length, false};
  if (options_.layers_above_new == 0 || old_ == nullptr)
    return Run{own->length, true};
  // Beyond its end the old chain is zeroes, whatever the new one has there.
  const uint64_t old_end = whole_sectors_bytes(*old_);
  if (offset >= old_end) return Run{own->length, true};
  const absl::StatusOr<BlockStatus> above =
      sector_status(*old_, {offset, std::min(own->length, old_end - offset)},
                    BlockStatusScope::kWholeChain);
  if (!above.ok()) return above.status();
  const bool is_above =
      above->allocated && above->depth < options_.layers_above_new;
  return Run{above->length, is_above};
}

absl::Status Rebase::find_pieces(uint64_t* offset, std::vector<Piece>* pieces,
                                 size_t* count) const {
  *count = 0;
  while (*offset < end_ && *count < pieces->size()) {
    const absl::StatusOr<Run> run = run_at(*offset);
    if (!run.ok()) {
      return with_context(run.status(),
                          absl::StrCat("error while reading image metadata"));
    }
    if (run->looked_at) (*pieces)[(*count)++].range = {*offset, run->length};
    *offset += run->length;
  }
  return absl::OkStatus();
}

absl::Status Rebase::read(BlockDevice* device, ByteRange range,
                          AlignedBuffer* bytes) {
  need_job_buffer(kPieceBytes, bytes);
  const uint64_t device_end =
      device == nullptr ? 0 : whole_sectors_bytes(*device);
  const uint64_t there =
      std::min(range.length, device_end - std::min(device_end, range.offset));
  std::memset(bytes->data() + there, 0, range.length - there);
  if (there == 0) return absl::OkStatus();
  return device->read(IoVector(bytes->data(), there),
                      Sector::from_byte_offset(range.offset));
}

void Rebase::compare(Piece* piece) const {
  piece->differences.clear();
  piece->status = read(old_, piece->range, &piece->before);
  if (!piece->status.ok()) {
    piece->status = with_context(piece->status,
                                 "error while reading from old backing file");
    return;
  }
  piece->status = read(new_, piece->range, &piece->after);
  if (!piece->status.ok()) {
    piece->status = with_context(piece->status,
                                 "error while reading from new backing file");
    return;
  }
  const uint8_t* const a = piece->before.data();
  const uint8_t* const b = piece->after.data();
  if (std::memcmp(a, b, piece->range.length) == 0) return;
  for (uint64_t at = 0; at < piece->range.length; at += kSectorSizeBytes) {
    if (std::memcmp(a + at, b + at, kSectorSizeBytes) == 0) continue;
    std::vector<ByteRange>& found = piece->differences;
    if (!found.empty() && found.back().end() == at) {
      found.back().length += kSectorSizeBytes;
    } else {
      found.push_back({at, kSectorSizeBytes});
    }
  }
}

absl::Status Rebase::write_data(const Piece& piece, ByteRange range) const {
  const uint8_t* const bytes =
      piece.before.data() + (range.offset - piece.range.offset);
  return overlay_.write(IoVector(const_cast<uint8_t*>(bytes), range.length),
                        Sector::from_byte_offset(range.offset));
}

absl::Status Rebase::write_zeroes(const Piece& piece, ByteRange range) const {
  absl::Status status = overlay_.write_zeroes(range, {});
  while (status.ok() && !range.empty()) {
    const absl::StatusOr<BlockStatus> own =
        sector_status(overlay_, range, BlockStatusScope::kThisLayer);
    if (!own.ok()) return own.status();
    const ByteRange part{range.offset, own->length};
    if (!own->allocated) status = write_data(piece, part);
    range = {part.end(), range.length - part.length};
  }
  return status;
}

absl::Status Rebase::write(const Piece& piece) const {
  const uint64_t old_end = old_ == nullptr ? 0 : whole_sectors_bytes(*old_);
  for (const ByteRange& part : piece.differences) {
    const ByteRange range{piece.range.offset + part.offset, part.length};
    const absl::Status status = range.offset >= old_end
                                    ? write_zeroes(piece, range)
                                    : write_data(piece, range);
    if (!status.ok())
      return with_context(status, "Error while writing to COW image");
  }
  return absl::OkStatus();
}

absl::Status Rebase::run() {
  std::vector<Piece> pieces(kPiecesAtOnce);
  for (uint64_t offset = 0; offset < end_;) {
    options_.job.report(offset, end_);
    absl::Status status = options_.job.check_cancelled();
    size_t count = 0;
    if (status.ok()) status = find_pieces(&offset, &pieces, &count);
    if (!status.ok()) return status;
    run_pieces(options_.job.executor, count, kMaxHelpers,
               [&](size_t i) { compare(&pieces[i]); });
    for (size_t i = 0; i < count; ++i) {
      status = pieces[i].status;
      if (status.ok()) status = write(pieces[i]);
      if (!status.ok()) return status;
    }
  }
  options_.job.report(end_, end_);
  return absl::OkStatus();
}

}  // namespace

absl::Status prepare_rebase(BlockDevice& overlay, BlockDevice* old_backing,
                            BlockDevice* new_backing,
                            const RebaseOptions& options) {
  return Rebase(overlay, old_backing, new_backing, options).run();
}

}  // namespace spindle

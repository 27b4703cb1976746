#include "engine/jobs/copy.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/numeric/bits.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/aligned_buffer.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/jobs/job_buffer.h"
#include "engine/jobs/sector_status.h"
#include "engine/jobs/zero_runs.h"
#include "engine/run_pieces.h"
#include "engine/sector.h"

namespace spindle {
namespace {

// What one worker reads and writes at one time.
constexpr uint64_t kPieceBytes = uint64_t{2} << 20;
// The same of what it compresses, which takes the longest by far: more would
// only take memory.
constexpr uint64_t kCompressedPieceBytes = uint64_t{512} << 10;
// How many of the runs that were counted are remembered, so that nobody asks
// for their status again: some 1.5 MiB.
constexpr size_t kMostRunsKept = size_t{64} << 10;
// The longest run that a status is asked for.
constexpr uint64_t kMaxStatusBytes = (uint64_t{1} << 31) - kSectorSizeBytes;

enum class Fate { kCopied, kZeroed, kLeftAlone };

struct Run {
  uint64_t offset = 0;
  uint64_t length = 0;
  Fate fate = Fate::kCopied;

  uint64_t end() const { return offset + length; }
};

struct Source {
  BlockDevice* device;
  uint64_t begin;
  uint64_t end;
  // Runs end at multiples of this, so that nothing is read twice.
  uint64_t alignment_bytes;
};

absl::Status failed(absl::string_view what, uint64_t offset,
                    const absl::Status& status) {
  const std::string context =
      absl::StrCat("error while ", what, " at byte ", offset);
  return with_qemu_words(
      with_context(status, context),
      absl::StrCat(context, ": ", std::strerror(errno_for(status))));
}

class Copier {
 public:
  Copier(absl::Span<BlockDevice* const> sources, BlockDevice& target,
         const CopyOptions& options);

  absl::Status run();

 private:
  struct Piece {
    Run run;
    uint64_t number = 0;
  };

  const Source& source_at(uint64_t offset) const;
  // What is known of the bytes from `offset` on.
  absl::StatusOr<Run> status_at(uint64_t offset) const;
  absl::StatusOr<BlockStatus> ask(const Source& source, ByteRange range) const;
  Fate fate_of(const BlockStatus& status, uint64_t offset) const;
  // Cuts `run` to what one piece takes.
  void cut(Run* run) const;
  absl::Status count_bytes();

  void work() ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Piece> take() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status find_next_run() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status copy(const Piece& piece, AlignedBuffer* buffer);
  absl::Status read(const Run& run, uint8_t* data) const;
  absl::Status read_by_sector(const Run& run, uint8_t* data) const;
  bool is_written_as_data(const Run& run) const {
    return run.fate == Fate::kCopied ||
           (run.fate == Fate::kZeroed && options_.min_zeroes_bytes == 0);
  }
  // What is to be written of `run`, which `data` was read from: data, zeroes.
  std::vector<Run> parts_of(const Run& run, const uint8_t* data) const;
  absl::Status write_data(const Run& run, const uint8_t* data) const;
  absl::Status write_zeroes(const Run& run) const;
  // False: a piece before this one has failed, and nothing behind it shall be
  // written.
  bool wait_for_turn(uint64_t number) ABSL_LOCKS_EXCLUDED(mutex_);
  void finish(const Piece& piece, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void fail(uint64_t number, const absl::Status& status)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void keep_to_rate(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<Source> sources_;
  BlockDevice& target_;
  const CopyOptions& options_;
  uint64_t end_ = 0;
  uint64_t backing_end_ = 0;
  uint64_t cluster_bytes_ = kSectorSizeBytes;
  uint64_t piece_bytes_ = kPieceBytes;
  bool is_in_order_ = true;
  ZeroRunRules zero_rules_;
  const absl::Time start_;

  absl::Mutex mutex_;
  // In order, from the first on; not all, if there are many.
  std::deque<Run> counted_ ABSL_GUARDED_BY(mutex_);
  uint64_t offset_ ABSL_GUARDED_BY(mutex_) = 0;  // of the next piece
  Run known_ ABSL_GUARDED_BY(mutex_);            // where it lies
  uint64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t written_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_to_copy_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_copied_ ABSL_GUARDED_BY(mutex_) = 0;
  // Of the lowest number that failed, whichever failed first: so the same error
  // is told each time.
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  uint64_t failed_number_ ABSL_GUARDED_BY(mutex_) =
      std::numeric_limits<uint64_t>::max();
};

Copier::Copier(absl::Span<BlockDevice* const> sources, BlockDevice& target,
               const CopyOptions& options)
    : target_(target), options_(options), start_(absl::Now()) {
  for (BlockDevice* device : sources) {
    const uint64_t begin = end_;
    end_ += whole_sectors_bytes(*device);
    const ImageInfo info = device->driver().info();
    sources_.push_back(
        {device, begin, end_,
         std::max<uint64_t>(
             info.cluster_size_bytes.value_or(0),
             device->driver().limits().request_alignment_bytes)});
  }
  BlockDriver& driver = target.driver();
  if (const auto backing = driver.backing();
      options.target_has_backing && backing != nullptr) {
    backing_end_ = align_up(backing->length_bytes(), kSectorSizeBytes);
  }
  const auto cluster_bytes = driver.info().cluster_size_bytes;
  cluster_bytes_ = cluster_bytes.value_or(kSectorSizeBytes);
  // Where nothing is allocated, no order shows in the target.
  is_in_order_ =
      options.in_order && !options.compress && cluster_bytes.has_value();
  if (options.compress)
    piece_bytes_ = std::max(kCompressedPieceBytes, cluster_bytes_);
  zero_rules_.min_zeroes_bytes =
      std::max(options.min_zeroes_bytes, kSectorSizeBytes);
  zero_rules_.alignment_bytes =
      std::max<uint64_t>(absl::bit_floor(zero_rules_.min_zeroes_bytes),
                         driver.limits().write_zeroes_alignment_bytes);
}

// ---- What there is ----------------------------------------------------------

const Source& Copier::source_at(uint64_t offset) const {
  size_t i = 0;
  while (offset >= sources_[i].end) ++i;
  return sources_[i];
}

absl::StatusOr<BlockStatus> Copier::ask(const Source& source,
                                        ByteRange range) const {
  const BlockStatusScope scope = options_.target_has_backing
                                     ? BlockStatusScope::kThisLayer
                                     : BlockStatusScope::kWholeChain;
  const ByteRange own{range.offset - source.begin, range.length};
  absl::StatusOr<BlockStatus> status =
      sector_status(*source.device, own, scope);
  if (status.ok() || !options_.salvage) return status;
  // Ever less, down to one sector, which is then data.
  while (!status.ok() && range.length > kSectorSizeBytes) {
    range.length = align_up(range.length / 4, kSectorSizeBytes);
    status = sector_status(*source.device, {own.offset, range.length}, scope);
  }
  if (status.ok()) return status;
  if (options_.log) {
    options_.log(LogSeverity::kWarning,
                 absl::StrCat("error while reading block status at offset ",
                              range.offset, ": ",
                              std::strerror(errno_for(status.status()))));
  }
  BlockStatus unknown;
  unknown.length = range.length;
  unknown.allocated = true;
  unknown.data = true;
  return unknown;
}

Fate Copier::fate_of(const BlockStatus& status, uint64_t offset) const {
  const bool is_above_layers =
      options_.source_layers == 0 ||
      (status.allocated && status.depth < options_.source_layers);
  if (!is_above_layers) return Fate::kLeftAlone;
  if (status.zero) {
    // Behind the end of the backing file there are zeroes already.
    return options_.target_has_backing && offset >= backing_end_
               ? Fate::kLeftAlone
               : Fate::kZeroed;
  }
  return options_.target_has_backing && !status.allocated ? Fate::kLeftAlone
                                                          : Fate::kCopied;
}

absl::StatusOr<Run> Copier::status_at(uint64_t offset) const {
  const Source& source = source_at(offset);
  uint64_t limit = std::min(source.end, offset + kMaxStatusBytes);
  if (offset < backing_end_) limit = std::min(limit, backing_end_);
  const absl::StatusOr<BlockStatus> status =
      ask(source, {offset, limit - offset});
  if (!status.ok()) {
    const std::string what =
        absl::StrCat("error while reading block status at offset ", offset);
    return with_qemu_words(
        with_context(status.status(), what),
        absl::StrCat(what, ": ", std::strerror(errno_for(status.status()))));
  }
  Run run{offset, status->length, fate_of(*status, offset)};
  const uint64_t tail = (run.end() - source.begin) % source.alignment_bytes;
  if (run.length > tail) run.length -= tail;
  return run;
}

void Copier::cut(Run* run) const {
  if (is_written_as_data(*run))
    run->length = std::min(run->length, piece_bytes_);
  if (!options_.compress) return;
  // Whole clusters only.
  if (run->length < cluster_bytes_) {
    run->length = std::min(cluster_bytes_, end_ - run->offset);
    run->fate = Fate::kCopied;
  } else {
    run->length = align_down(run->length, cluster_bytes_);
  }
}

// How much there is to copy, for those who want to know how far it is.
absl::Status Copier::count_bytes() {
  uint64_t bytes = 0;
  std::deque<Run> runs;
  for (uint64_t offset = 0; offset < end_;) {
    const absl::StatusOr<Run> run = status_at(offset);
    if (!run.ok()) return run.status();
    if (is_written_as_data(*run)) bytes += run->length;
    if (runs.size() < kMostRunsKept) runs.push_back(*run);
    offset += run->length;
  }
  absl::MutexLock lock(&mutex_);
  bytes_to_copy_ = bytes;
  counted_ = std::move(runs);
  return absl::OkStatus();
}

// ---- The workers ------------------------------------------------------------

absl::Status Copier::run() {
  if (options_.job.progress) {
    absl::Status status = count_bytes();
    if (!status.ok()) return status;
  }
  const size_t workers = pieces_at_once(options_);
  run_pieces(options_.job.executor, workers, workers,
             [this](size_t) { work(); });
  absl::MutexLock lock(&mutex_);
  return failure_;
}

void Copier::work() {
  AlignedBuffer buffer;
  while (const std::optional<Piece> piece = take())
    finish(*piece, copy(*piece, &buffer));
}

absl::Status Copier::find_next_run() {
  if (known_.end() > offset_) {
    known_.length = known_.end() - offset_;
    known_.offset = offset_;
    return absl::OkStatus();
  }
  while (!counted_.empty() && counted_.front().end() <= offset_)
    counted_.pop_front();
  if (!counted_.empty()) {
    known_ = counted_.front();
    known_.length = known_.end() - offset_;
    known_.offset = offset_;
    return absl::OkStatus();
  }
  absl::StatusOr<Run> run = status_at(offset_);
  if (!run.ok()) return run.status();
  known_ = *run;
  return absl::OkStatus();
}

// The status of what comes next is asked under the lock: all others would wait
// for it anyway.
std::optional<Copier::Piece> Copier::take() {
  absl::MutexLock lock(&mutex_);
  while (offset_ < end_ && failure_.ok()) {
    absl::Status status = options_.job.check_cancelled();
    if (!status.ok()) {
      // What has been read is not waited for either.
      fail(0, status);
      return std::nullopt;
    }
    status = find_next_run();
    if (!status.ok()) {
      fail(taken_, status);
      return std::nullopt;
    }
    Piece piece{known_, taken_};
    cut(&piece.run);
    offset_ += piece.run.length;
    const bool is_nothing =
        piece.run.fate == Fate::kLeftAlone ||
        (piece.run.fate == Fate::kZeroed && options_.target_reads_as_zeroes &&
         options_.min_zeroes_bytes != 0);
    if (is_nothing) continue;
    ++taken_;
    return piece;
  }
  return std::nullopt;
}

absl::Status Copier::copy(const Piece& piece, AlignedBuffer* buffer) {
  const Run& run = piece.run;
  absl::Status status;
  // Looked through before the turn comes: others do so at the same time.
  std::vector<Run> parts = {run};
  if (is_written_as_data(run)) {
    need_job_buffer(piece_bytes_, buffer);
    if (run.fate == Fate::kZeroed) {
      std::memset(buffer->data(), 0, run.length);
    } else {
      status = read(run, buffer->data());
    }
    if (status.ok()) parts = parts_of(run, buffer->data());
  }
  // Also after an error: the others wait for this one.
  if (!wait_for_turn(piece.number)) return status;
  for (const Run& part : parts) {
    if (!status.ok()) return status;
    const uint8_t* const data = buffer->data() + (part.offset - run.offset);
    status = part.fate == Fate::kZeroed ? write_zeroes(part)
                                        : write_data(part, data);
  }
  if (is_written_as_data(run) && status.ok()) keep_to_rate(run.length);
  return status;
}

bool Copier::wait_for_turn(uint64_t number) {
  absl::MutexLock lock(&mutex_);
  if (is_in_order_) {
    const auto is_next = [this, number]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(
                             mutex_) { return written_ == number; };
    mutex_.Await(absl::Condition(&is_next));
  }
  return number < failed_number_;
}

void Copier::fail(uint64_t number, const absl::Status& status) {
  if (number >= failed_number_) return;
  failed_number_ = number;
  failure_ = status;
}

void Copier::finish(const Piece& piece, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  ++written_;
  if (!status.ok()) fail(piece.number, status);
  if (is_written_as_data(piece.run)) bytes_copied_ += piece.run.length;
  // From one thread at a time.
  options_.job.report(std::min(bytes_copied_, bytes_to_copy_), bytes_to_copy_);
}

void Copier::keep_to_rate(uint64_t bytes) {
  if (options_.bytes_per_second == 0) return;
  uint64_t done = bytes;
  {
    absl::MutexLock lock(&mutex_);
    done += bytes_copied_;
  }
  absl::SleepFor(start_ +
                 absl::Seconds(static_cast<double>(done) /
                               static_cast<double>(options_.bytes_per_second)) -
                 absl::Now());
}

// ---- One piece --------------------------------------------------------------

// A run may reach from one source into the next (compressed clusters).
absl::Status Copier::read(const Run& run, uint8_t* data) const {
  for (uint64_t at = run.offset; at < run.end();) {
    const Source& source = source_at(at);
    const Run part{at, std::min(run.end(), source.end) - at, run.fate};
    uint8_t* const to = data + (at - run.offset);
    absl::Status status = source.device->read(
        IoVector(to, part.length), Sector::from_byte_offset(at - source.begin));
    if (!status.ok())
      status = options_.salvage ? read_by_sector(part, to)
                                : failed("reading", at, status);
    if (!status.ok()) return status;
    at = part.end();
  }
  return absl::OkStatus();
}

absl::Status Copier::read_by_sector(const Run& run, uint8_t* data) const {
  const Source& source = source_at(run.offset);
  for (uint64_t at = run.offset; at < run.end(); at += kSectorSizeBytes) {
    uint8_t* const to = data + (at - run.offset);
    const absl::Status status =
        source.device->read(IoVector(to, kSectorSizeBytes),
                            Sector::from_byte_offset(at - source.begin));
    if (status.ok()) continue;
    std::memset(to, 0, kSectorSizeBytes);
    if (!options_.log) continue;
    options_.log(LogSeverity::kWarning,
                 absl::StrCat("error while reading offset ", at, ": ",
                              std::strerror(errno_for(status))));
  }
  return absl::OkStatus();
}

std::vector<Run> Copier::parts_of(const Run& run, const uint8_t* data) const {
  std::vector<Run> parts;
  for (uint64_t done = 0; done < run.length;) {
    Run part{run.offset + done, run.length - done, Fate::kCopied};
    const absl::Span<const uint8_t> rest(data + done, part.length);
    if (options_.compress) {
      part.length = std::min(part.length, cluster_bytes_);
      const IoVector cluster(const_cast<uint8_t*>(rest.data()), part.length);
      if (options_.min_zeroes_bytes != 0 && cluster.is_zero())
        part.fate = Fate::kZeroed;
    } else if (options_.min_zeroes_bytes != 0 && options_.find_zeroes) {
      const ZeroRun found = first_run(rest, part.offset, zero_rules_);
      part.length = found.length;
      if (found.zero) part.fate = Fate::kZeroed;
    }
    parts.push_back(part);
    done += part.length;
  }
  return parts;
}

absl::Status Copier::write_data(const Run& run, const uint8_t* data) const {
  const IoVector qiov(const_cast<uint8_t*>(data), run.length);
  const Sector sector = Sector::from_byte_offset(run.offset);
  const absl::Status status = options_.compress
                                  ? target_.write_compressed(qiov, sector)
                                  : target_.write(qiov, sector);
  return status.ok() ? status : failed("writing", run.offset, status);
}

absl::Status Copier::write_zeroes(const Run& run) const {
  if (options_.target_reads_as_zeroes) return absl::OkStatus();
  const absl::Status status = target_.write_zeroes(
      {run.offset, run.length}, {.may_unmap = true, .no_fallback = false});
  return status.ok() ? status : failed("writing", run.offset, status);
}

}  // namespace

size_t pieces_at_once(const CopyOptions& options) {
  if (options.max_pieces != 0) return options.max_pieces;
  if (options.compress) return kJobWidth;
  const size_t processors = std::thread::hardware_concurrency();
  return std::clamp<size_t>(processors + 1, 2, kJobWidth);
}

absl::Status copy_images(absl::Span<BlockDevice* const> sources,
                         BlockDevice& target, const CopyOptions& options) {
  return Copier(sources, target, options).run();
}

absl::Status copy_image(BlockDevice& source, BlockDevice& target,
                        const CopyOptions& options) {
  BlockDevice* const sources[] = {&source};
  return copy_images(sources, target, options);
}

}  // namespace spindle

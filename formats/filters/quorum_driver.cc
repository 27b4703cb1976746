#include "formats/filters/quorum_driver.h"

#include <errno.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/filters/filter_options.h"

namespace spindle {
namespace {

using Hold = RangeTracker::Hold;
using Mode = RangeTracker::Mode;

// What is compared in one go, unless requests must be larger; each child has a
// buffer of it.
constexpr size_t kPieceBytes = size_t{256} << 10;
constexpr size_t kBuffersKept = 8;
constexpr size_t kBufferAlignment = 4096;

size_t memory_alignment(
    const std::vector<std::shared_ptr<BlockDriver>>& children) {
  size_t alignment = kBufferAlignment;
  for (const auto& child : children) {
    alignment =
        std::max<size_t>(alignment, child->limits().memory_alignment_bytes);
  }
  return alignment;
}

absl::Status refuse(absl::string_view message) {
  return absl::InvalidArgumentError(message);
}

// Which of `answers` others agree with most; `votes`: how many.  Of those that
// have as many the one that was given last for the first time, as in QEMU.
size_t elect(const std::vector<const uint8_t*>& answers, size_t bytes,
             size_t* votes) {
  size_t winner = 0;
  *votes = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const auto is_same = [&](const uint8_t* other) {
      return std::memcmp(other, answers[i], bytes) == 0;
    };
    const auto here = answers.begin() + static_cast<ptrdiff_t>(i);
    if (std::any_of(answers.begin(), here, is_same)) continue;
    const auto agree =
        static_cast<size_t>(std::count_if(here, answers.end(), is_same));
    if (agree < *votes) continue;
    winner = i;
    *votes = agree;
  }
  return winner;
}

}  // namespace

absl::StatusOr<QuorumOptions> parse_quorum_options(const OptionMap& options,
                                                   size_t child_count) {
  FilterOptions taken("quorum", options);
  QuorumOptions result;
  uint64_t threshold = 0;
  taken.take_number("vote-threshold", &threshold);
  taken.take_bool("blkverify", &result.blkverify);
  taken.take_bool("rewrite-corrupted", &result.rewrite_corrupted);
  const std::string pattern =
      taken.take_text("read-pattern").value_or("quorum");
  absl::Status status = taken.finish();
  if (!status.ok()) return status;
  if (child_count == 0)
    return refuse("Number of provided children must be 1 or more");
  if (threshold == 0)
    return refuse("Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > child_count)
    return refuse("threshold may not exceed children count");
  if (pattern != "quorum" && pattern != "fifo")
    return refuse("Please set read-pattern as fifo or quorum");
  result.vote_threshold = threshold;
  if (pattern == "fifo")
    result.read_pattern = QuorumOptions::ReadPattern::kFifo;
  if (result.blkverify && (child_count != 2 || threshold != 2)) {
    return refuse(
        "blkverify=on can only be set if there are exactly two files and "
        "vote-threshold is 2");
  }
  if (result.blkverify && result.rewrite_corrupted)
    return refuse("rewrite-corrupted=on cannot be used with blkverify=on");
  return result;
}

QuorumDriver::QuorumDriver(std::vector<std::shared_ptr<BlockDriver>> children,
                           const QuorumOptions& options)
    : children_(std::move(children)),
      options_(options),
      piece_bytes_(
          std::max<size_t>(kPieceBytes, limits().request_alignment_bytes)),
      buffers_(memory_alignment(children_), kBuffersKept,
               children_.size() * piece_bytes_) {}

absl::StatusOr<std::shared_ptr<BlockDriver>> QuorumDriver::create(
    std::vector<std::shared_ptr<BlockDriver>> children,
    const QuorumOptions& options) {
  const uint64_t length = children[0]->length_bytes();
  for (size_t i = 1; i < children.size(); ++i) {
    if (children[i]->length_bytes() == length) continue;
    return with_qemu_words(
        errno_status(EIO, absl::StrCat("child ", i, " of the quorum has ",
                                       children[i]->length_bytes(),
                                       " bytes, child 0 has ", length)),
        "Could not refresh total sector count: Input/output error");
  }
  return std::shared_ptr<BlockDriver>(
      new QuorumDriver(std::move(children), options));
}

// ---- Reading ----------------------------------------------------------------

absl::Status QuorumDriver::read(const IoVector& qiov, Sector sector) {
  const Hold hold(&ranges_, {sector.byte_offset(), qiov.length_bytes()},
                  Mode::kShared);
  if (options_.read_pattern == QuorumOptions::ReadPattern::kFifo)
    return read_first(qiov, sector);
  for (uint64_t done = 0; done < qiov.length_bytes(); done += piece_bytes_) {
    const uint64_t bytes =
        std::min<uint64_t>(piece_bytes_, qiov.length_bytes() - done);
    absl::Status status =
        read_piece(qiov.slice(done, bytes),
                   Sector::from_byte_offset(sector.byte_offset() + done));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status QuorumDriver::read_first(const IoVector& qiov,
                                      Sector sector) const {
  absl::Status first;
  for (const auto& child : children_) {
    absl::Status status = child->read(qiov, sector);
    if (status.ok()) return status;
    if (first.ok()) first = std::move(status);
  }
  return first;
}

absl::Status QuorumDriver::read_piece(const IoVector& qiov, Sector sector) {
  const size_t bytes = qiov.length_bytes();
  const AlignedBufferPool::Lease buffer =
      buffers_.take(children_.size() * piece_bytes_);
  std::vector<const uint8_t*> answers;
  std::vector<BlockDriver*> voters;
  absl::Status first;
  for (size_t i = 0; i < children_.size(); ++i) {
    uint8_t* const at = buffer.data() + i * piece_bytes_;
    absl::Status status = children_[i]->read(IoVector(at, bytes), sector);
    if (status.ok()) {
      answers.push_back(at);
      voters.push_back(children_[i].get());
    } else if (first.ok()) {
      first = std::move(status);
    }
  }
  if (answers.size() < options_.vote_threshold) return first;
  size_t votes = 0;
  const size_t winner = elect(answers, bytes, &votes);
  if (options_.blkverify && votes != answers.size()) {
    const auto [a, b] =
        std::mismatch(answers[0], answers[0] + bytes, answers[1]);
    return errno_status(
        EIO, absl::StrCat(
                 "quorum: contents mismatch at offset ",
                 sector.byte_offset() + static_cast<uint64_t>(a - answers[0])));
  }
  if (votes < options_.vote_threshold) {
    return errno_status(
        EIO, absl::StrCat("quorum: of ", answers.size(), " answers for ", bytes,
                          " bytes at offset ", sector.byte_offset(),
                          " no more than ", votes, " agree; vote-threshold is ",
                          options_.vote_threshold));
  }
  qiov.copy_from(0, answers[winner], bytes);
  if (!options_.rewrite_corrupted || read_only()) return absl::OkStatus();
  for (size_t i = 0; i < answers.size(); ++i) {
    if (std::memcmp(answers[i], answers[winner], bytes) == 0) continue;
    // The next read finds again what could not be put right.
    voters[i]
        ->write(IoVector(const_cast<uint8_t*>(answers[winner]), bytes), sector)
        .IgnoreError();
  }
  return absl::OkStatus();
}

// ---- Changes ----------------------------------------------------------------

absl::Status QuorumDriver::vote(Step step) const {
  size_t votes = 0;
  absl::Status first;
  for (const auto& child : children_) {
    absl::Status status = step(*child);
    if (status.ok()) {
      ++votes;
    } else if (first.ok()) {
      first = std::move(status);
    }
  }
  return votes >= options_.vote_threshold ? absl::OkStatus() : first;
}

absl::Status QuorumDriver::to_all(Step step) const {
  absl::Status first;
  for (const auto& child : children_) {
    absl::Status status = step(*child);
    if (first.ok()) first = std::move(status);
  }
  return first;
}

absl::Status QuorumDriver::write(const IoVector& qiov, Sector sector) {
  const Hold hold(&ranges_, {sector.byte_offset(), qiov.length_bytes()},
                  Mode::kExclusive);
  return vote([&](BlockDriver& child) { return child.write(qiov, sector); });
}

absl::Status QuorumDriver::flush() {
  return vote([](BlockDriver& child) { return child.flush(); });
}

absl::Status QuorumDriver::write_zeroes(ByteRange range,
                                        WriteZeroesFlags flags) {
  const Hold hold(&ranges_, range, Mode::kExclusive);
  // A child that would have to write them is not outvoted: it has not failed,
  // and would be left with what it had.
  absl::Status must_write;
  absl::Status status = vote([&](BlockDriver& child) {
    absl::Status of_child = child.write_zeroes(range, flags);
    if (absl::IsUnimplemented(of_child)) must_write = of_child;
    return of_child;
  });
  return must_write.ok() ? status : must_write;
}

absl::StatusOr<BlockStatus> QuorumDriver::block_status(ByteRange range,
                                                       BlockStatusScope scope) {
  BlockStatus zeroes, data;
  zeroes.allocated = data.allocated = true;
  zeroes.zero = true;
  zeroes.length = range.length;
  data.data = true;
  for (const auto& child : children_) {
    const absl::StatusOr<BlockStatus> status =
        child->block_status(range, scope);
    if (!status.ok()) return status;
    BlockStatus& which = status->zero ? zeroes : data;
    which.length = status->zero ? std::min(zeroes.length, status->length)
                                : std::max(data.length, status->length);
  }
  return data.length > 0 ? data : zeroes;
}

// ---- What it is -------------------------------------------------------------

bool QuorumDriver::read_only() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const auto& child) { return child->read_only(); });
}

ImageInfo QuorumDriver::info() const {
  ImageInfo info = BlockDriver::info();
  info.actual_size_bytes = 0;
  for (const auto& child : children_) {
    const std::optional<uint64_t> bytes = child->info().actual_size_bytes;
    if (!bytes.has_value()) {
      info.actual_size_bytes = std::nullopt;
      break;
    }
    *info.actual_size_bytes += *bytes;
  }
  return info;
}

DriverLimits QuorumDriver::limits() const {
  DriverLimits limits = children_[0]->limits();
  for (const auto& child : children_) {
    const DriverLimits of = child->limits();
    const auto raise = [](auto* limit, auto other) {
      *limit = std::max(*limit, other);
    };
    raise(&limits.request_alignment_bytes, of.request_alignment_bytes);
    raise(&limits.memory_alignment_bytes, of.memory_alignment_bytes);
    raise(&limits.discard_alignment_bytes, of.discard_alignment_bytes);
    raise(&limits.write_zeroes_alignment_bytes,
          of.write_zeroes_alignment_bytes);
    // 0 is no limit.
    const auto lower = [](auto* limit, auto other) {
      if (other != 0 && (*limit == 0 || other < *limit)) *limit = other;
    };
    lower(&limits.max_transfer_bytes, of.max_transfer_bytes);
    lower(&limits.max_segments, of.max_segments);
  }
  return limits;
}

Capabilities QuorumDriver::capabilities() const {
  Capabilities result;
  for (const Capability capability :
       {Capability::kWriteZeroes, Capability::kWriteZeroesMayUnmap,
        Capability::kWriteZeroesNoFallback, Capability::kBlockStatus,
        Capability::kInactivate}) {
    if (std::all_of(children_.begin(), children_.end(), [&](const auto& child) {
          return child->capabilities().has(capability);
        })) {
      result.add(capability);
    }
  }
  return result;
}

absl::Status QuorumDriver::inactivate() {
  return to_all([](BlockDriver& child) { return child.inactivate(); });
}

absl::Status QuorumDriver::activate() {
  return to_all([](BlockDriver& child) { return child.activate(); });
}

absl::Status QuorumDriver::close() {
  return to_all([](BlockDriver& child) { return child.close(); });
}

// ---- Opening ----------------------------------------------------------------

namespace {

class QuorumFilter final : public DriverFilter {
 public:
  absl::string_view name() const override { return "quorum"; }
  absl::string_view child_option() const override { return "children"; }
  bool takes_list() const override { return true; }
  absl::Status check_list(size_t child_count,
                          const OptionMap& options) const override {
    return parse_quorum_options(options, child_count).status();
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver>, const OpenOptions&) const override {
    return absl::InternalError("a quorum has several children");
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open_list(
      std::vector<std::shared_ptr<BlockDriver>> children,
      const OpenOptions& options) const override {
    const absl::StatusOr<QuorumOptions> own =
        parse_quorum_options(options.driver_options, children.size());
    if (!own.ok()) return own.status();
    return QuorumDriver::create(std::move(children), *own);
  }
};

}  // namespace

const DriverFilter* quorum_filter() {
  static const auto* const filter = new QuorumFilter;
  return filter;
}

}  // namespace spindle

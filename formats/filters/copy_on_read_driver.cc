#include "formats/filters/copy_on_read_driver.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/checked_math.h"
#include "formats/filters/filter_options.h"

namespace spindle {
namespace {

using Hold = RangeTracker::Hold;
using Mode = RangeTracker::Mode;

constexpr size_t kBufferAlignment = 4096;
constexpr size_t kBuffersKept = 8;
// The most that one copy holds, unless a cluster is larger.
constexpr uint64_t kChunkBytes = uint64_t{1} << 20;
constexpr ByteRange kWholeImage{0, std::numeric_limits<int64_t>::max()};

// Null if there is none of that name below `top`.
std::shared_ptr<BlockDriver> find_layer(const BlockDriver& top,
                                        const std::string& filename) {
  for (std::shared_ptr<BlockDriver> layer = top.backing(); layer != nullptr;
       layer = layer->backing()) {
    if (layer->filename() == filename) return layer;
  }
  return nullptr;
}

uint64_t usable_cluster_size(const BlockDriver& driver) {
  const uint64_t alignment = driver.limits().request_alignment_bytes;
  const uint64_t cluster =
      driver.info().cluster_size_bytes.value_or(kSectorSizeBytes);
  return is_power_of_two(cluster) ? std::max(cluster, alignment) : alignment;
}

}  // namespace

CopyOnReadDriver::CopyOnReadDriver(std::shared_ptr<BlockDriver> child,
                                   std::shared_ptr<BlockDriver> bottom)
    : FilterDriver(std::move(child)),
      cluster_bytes_(usable_cluster_size(this->child())),
      alignment_bytes_(this->child().limits().request_alignment_bytes),
      has_status_(this->child().capabilities().has(Capability::kBlockStatus)),
      has_zeroes_(this->child().capabilities().has(Capability::kWriteZeroes)),
      child_observer_(this->child().access_observer()),
      bottom_(std::move(bottom)),
      buffers_(std::max<size_t>(kBufferAlignment,
                                this->child().limits().memory_alignment_bytes),
               kBuffersKept, std::max(kChunkBytes, cluster_bytes_)) {}

absl::StatusOr<std::shared_ptr<BlockDriver>> CopyOnReadDriver::create(
    std::shared_ptr<BlockDriver> child, const std::string& bottom) {
  if (child->read_only()) {
    return absl::PermissionDeniedError(
        absl::StrCat("Block node is read-only: '", child->filename(),
                     "' cannot be copied into on reads"));
  }
  std::shared_ptr<BlockDriver> layer;
  if (!bottom.empty()) {
    layer = find_layer(*child, bottom);
    if (layer == nullptr) {
      return absl::NotFoundError(absl::StrCat("Bottom node '", bottom,
                                              "' not found below '",
                                              child->filename(), "'"));
    }
  }
  return std::shared_ptr<BlockDriver>(
      new CopyOnReadDriver(std::move(child), std::move(layer)));
}

Capabilities CopyOnReadDriver::capabilities() const {
  Capabilities capabilities = child().capabilities();
  capabilities.remove(Capability::kTryRead);
  return capabilities;
}

// ---- Reading ----------------------------------------------------------------

bool CopyOnReadDriver::copies() const { return has_status_ && !read_only(); }

// An error of the status is found again by the read; until then the range
// counts as one to copy, as in QEMU.
CopyOnReadDriver::Piece CopyOnReadDriver::first_piece(ByteRange range) {
  const absl::StatusOr<BlockStatus> own =
      child().block_status(range, BlockStatusScope::kThisLayer);
  if (!own.ok()) return {range.length, true};
  if (own->allocated || bottom_ == nullptr)
    return {own->length, !own->allocated};
  const absl::StatusOr<Piece> above =
      first_piece_above_bottom({range.offset, own->length});
  return above.ok() ? *above : Piece{own->length, true};
}

absl::StatusOr<CopyOnReadDriver::Piece>
CopyOnReadDriver::first_piece_above_bottom(ByteRange range) {
  for (std::shared_ptr<BlockDriver> layer = child().backing(); layer != nullptr;
       layer = layer->backing()) {
    const uint64_t length = layer->length_bytes();
    // Behind the end of a short layer it is that layer's zeroes that show.
    if (range.offset >= length) return Piece{range.length, true};
    range.length = std::min(range.length, length - range.offset);
    const absl::StatusOr<BlockStatus> status =
        layer->block_status(range, BlockStatusScope::kThisLayer);
    if (!status.ok()) return status.status();
    range.length = status->length;
    if (status->allocated) return Piece{range.length, true};
    if (layer == bottom_) break;
  }
  return Piece{range.length, false};
}

bool CopyOnReadDriver::must_copy(ByteRange range) {
  // It may have become shorter since the caller looked.
  const uint64_t end = std::min(range.end(), length_bytes());
  range.length = end - std::min(end, range.offset);
  while (!range.empty()) {
    const Piece piece = first_piece(range);
    if (piece.copy) return true;
    range = {range.offset + piece.length, range.length - piece.length};
  }
  return false;
}

absl::Status CopyOnReadDriver::read(const IoVector& qiov, Sector sector) {
  const uint64_t offset = sector.byte_offset();
  if (qiov.empty() || offset >= length_bytes() || !copies() ||
      !must_copy({offset, qiov.length_bytes()})) {
    return child().read(qiov, sector);
  }
  return read_and_copy(qiov, offset);
}

absl::Status CopyOnReadDriver::read_and_copy(const IoVector& qiov,
                                             uint64_t offset) {
  const uint64_t chunk_bytes = std::max(kChunkBytes, cluster_bytes_);
  const uint64_t end = offset + qiov.length_bytes();
  for (uint64_t at = offset; at < end;) {
    const uint64_t begin = align_down(at, cluster_bytes_);
    const uint64_t wanted =
        std::min(begin + chunk_bytes, align_up(end, cluster_bytes_));
    const Hold hold(&ranges_, {begin, wanted - begin}, Mode::kExclusive);
    // Asked for under the hold, which keeps changes of the length out.
    const uint64_t chunk_end =
        std::min(wanted, align_up(length_bytes(), alignment_bytes_));
    if (chunk_end <= at) {
      return absl::OutOfRangeError(absl::StrCat(
          "offset ", at, " lies beyond the image's length, ", length_bytes()));
    }
    const AlignedBufferPool::Lease buffer = buffers_.take(chunk_end - begin);
    const absl::Status status =
        copy_chunk_held({begin, chunk_end - begin}, buffer.data());
    if (!status.ok()) return status;
    const uint64_t bytes = std::min(chunk_end, end) - at;
    qiov.copy_from(at - offset, buffer.data() + (at - begin), bytes);
    at += bytes;
  }
  return absl::OkStatus();
}

absl::Status CopyOnReadDriver::copy_chunk_held(ByteRange chunk,
                                               uint8_t* bytes) {
  const absl::Status status = child().read(
      IoVector(bytes, chunk.length), Sector::from_byte_offset(chunk.offset));
  if (!status.ok() || !copies()) return status;
  const uint64_t end = std::min(chunk.end(), length_bytes());
  for (uint64_t at = chunk.offset; at < end;) {
    const Piece piece = first_piece({at, end - at});
    if (piece.copy) {
      const uint64_t begin = align_down(at, alignment_bytes_);
      const ByteRange stored{
          begin, align_up(at + piece.length, alignment_bytes_) - begin};
      const absl::Status copied =
          write_copy_held(stored, bytes + (begin - chunk.offset));
      if (!copied.ok()) return copied;
    }
    at += piece.length;
  }
  return absl::OkStatus();
}

absl::Status CopyOnReadDriver::write_copy_held(ByteRange range,
                                               uint8_t* bytes) {
  if (child_observer_ != nullptr) {
    const absl::Status status = child_observer_->before_access(
        {Purpose::kCorWrite, AccessKind::kWrite, range});
    if (!status.ok()) return status;
  }
  const IoVector stored(bytes, range.length);
  if (has_zeroes_ && stored.is_zero()) {
    const uint64_t end = std::min(range.end(), length_bytes());
    const absl::Status status =
        child().write_zeroes({range.offset, end - range.offset}, {});
    if (!absl::IsUnimplemented(status)) return status;
  }
  return child().write(stored, Sector::from_byte_offset(range.offset));
}

// ---- Changing ---------------------------------------------------------------

uint64_t CopyOnReadDriver::try_read(const IoVector&, Sector) { return 0; }

uint64_t CopyOnReadDriver::try_write(const IoVector& qiov, Sector sector) {
  const Hold hold(&ranges_, {sector.byte_offset(), qiov.length_bytes()},
                  Mode::kShared, RangeTracker::kTry);
  return hold.held() ? child().try_write(qiov, sector) : 0;
}

absl::Status CopyOnReadDriver::write(const IoVector& qiov, Sector sector) {
  const Hold hold(&ranges_, {sector.byte_offset(), qiov.length_bytes()},
                  Mode::kShared);
  return child().write(qiov, sector);
}

absl::Status CopyOnReadDriver::discard(ByteRange range) {
  const Hold hold(&ranges_, range, Mode::kShared);
  return child().discard(range);
}

absl::Status CopyOnReadDriver::write_zeroes(ByteRange range,
                                            WriteZeroesFlags flags) {
  const Hold hold(&ranges_, range, Mode::kShared);
  return child().write_zeroes(range, flags);
}

absl::Status CopyOnReadDriver::write_compressed(const IoVector& qiov,
                                                Sector sector) {
  const Hold hold(&ranges_, {sector.byte_offset(), qiov.length_bytes()},
                  Mode::kShared);
  return child().write_compressed(qiov, sector);
}

absl::Status CopyOnReadDriver::set_length(uint64_t length_bytes,
                                          SetLengthMode mode) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().set_length(length_bytes, mode);
}

absl::Status CopyOnReadDriver::resize(uint64_t length_bytes,
                                      Preallocation preallocation) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().resize(length_bytes, preallocation);
}

absl::StatusOr<CheckResult> CopyOnReadDriver::check(
    const CheckOptions& options) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().check(options);
}

absl::Status CopyOnReadDriver::apply_snapshot(absl::string_view snapshot) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().apply_snapshot(snapshot);
}

absl::Status CopyOnReadDriver::amend(const AmendOptions& options) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().amend(options);
}

absl::Status CopyOnReadDriver::reopen(const ReopenOptions& options) {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return FilterDriver::reopen(options);
}

absl::Status CopyOnReadDriver::inactivate() {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().inactivate();
}

absl::Status CopyOnReadDriver::activate() {
  const Hold hold(&ranges_, kWholeImage, Mode::kShared);
  return child().activate();
}

// ---- Opening ----------------------------------------------------------------

namespace {

class CopyOnReadFilter final : public DriverFilter {
 public:
  absl::string_view name() const override { return "copy-on-read"; }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child,
      const OpenOptions& options) const override {
    FilterOptions own(name(), options.driver_options);
    const std::string bottom = own.take_text("bottom").value_or("");
    if (absl::Status status = own.finish(); !status.ok()) return status;
    return CopyOnReadDriver::create(std::move(child), bottom);
  }
};

}  // namespace

const DriverFilter* copy_on_read_filter() {
  static const auto* const filter = new CopyOnReadFilter;
  return filter;
}

}  // namespace spindle

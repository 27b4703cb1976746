#include "formats/filters/compress_driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "formats/filters/filter_options.h"

namespace spindle {
namespace {

using Hold = RangeTracker::Hold;
using Mode = RangeTracker::Mode;

constexpr size_t kBufferAlignment = 4096;
constexpr size_t kBuffersKept = 8;
// Two clusters of the largest size that qcow2 has.
constexpr size_t kKeptBytes = size_t{4} << 20;

}  // namespace

CompressDriver::CompressDriver(std::shared_ptr<BlockDriver> child,
                               uint64_t cluster_bytes)
    : FilterDriver(std::move(child)),
      cluster_bytes_(cluster_bytes),
      child_alignment_(this->child().limits().request_alignment_bytes),
      buffers_(std::max<size_t>(kBufferAlignment,
                                this->child().limits().memory_alignment_bytes),
               kBuffersKept, kKeptBytes) {}

absl::StatusOr<std::shared_ptr<BlockDriver>> CompressDriver::create(
    std::shared_ptr<BlockDriver> child) {
  const uint64_t cluster_bytes =
      child->info().cluster_size_bytes.value_or(kSectorSizeBytes);
  if (!child->capabilities().has(Capability::kWriteCompressed) ||
      !is_power_of_two(cluster_bytes) || cluster_bytes < kSectorSizeBytes) {
    return absl::UnimplementedError(
        absl::StrCat("Compression is not supported for underlying format: ",
                     child->format_name()));
  }
  return std::shared_ptr<BlockDriver>(
      new CompressDriver(std::move(child), cluster_bytes));
}

DriverLimits CompressDriver::limits() const {
  DriverLimits limits = child().limits();
  limits.writes_take_turns = false;  // they compress beside each other
  limits.optimal_transfer_bytes = static_cast<uint32_t>(cluster_bytes_);
  return limits;
}

Capabilities CompressDriver::capabilities() const {
  Capabilities capabilities = child().capabilities();
  capabilities.remove(Capability::kTryWrite);
  return capabilities;
}

uint64_t CompressDriver::try_write(const IoVector&, Sector) { return 0; }

ByteRange CompressDriver::whole_clusters(ByteRange range) const {
  const uint64_t begin = align_down(range.offset, cluster_bytes_);
  const uint64_t end = std::min(align_up(range.end(), cluster_bytes_),
                                align_up(length_bytes(), child_alignment_));
  return {begin, std::max(end, range.end()) - begin};
}

absl::Status CompressDriver::write(const IoVector& qiov, Sector sector) {
  if (qiov.empty()) return absl::OkStatus();
  const ByteRange range{sector.byte_offset(), qiov.length_bytes()};
  const ByteRange clusters = whole_clusters(range);
  if (clusters == range) {
    const Hold hold(&ranges_, range, Mode::kShared);
    return write_clusters(qiov, range.offset);
  }
  const Hold hold(&ranges_, clusters, Mode::kExclusive);
  return write_parts(qiov, range.offset, clusters);
}

absl::Status CompressDriver::write_clusters(const IoVector& qiov,
                                            uint64_t offset) {
  return child().write_compressed(qiov, Sector::from_byte_offset(offset));
}

// Reads what surrounds `qiov` in its first and last cluster, and writes all of
// it.
absl::Status CompressDriver::write_parts(const IoVector& qiov, uint64_t offset,
                                         ByteRange clusters) {
  const uint64_t end = offset + qiov.length_bytes();
  const uint64_t head_bytes = offset - clusters.offset;
  const uint64_t tail_bytes = clusters.end() - end;
  const AlignedBufferPool::Lease buffer =
      buffers_.take(std::max<size_t>(head_bytes + tail_bytes, 1));
  const IoVector head(buffer.data(), head_bytes);
  const IoVector tail(buffer.data() + head_bytes, tail_bytes);
  if (head_bytes != 0) {
    const absl::Status status =
        child().read(head, Sector::from_byte_offset(clusters.offset));
    if (!status.ok()) return status;
  }
  if (tail_bytes != 0) {
    const absl::Status status =
        child().read(tail, Sector::from_byte_offset(end));
    if (!status.ok()) return status;
  }
  IoVector whole = head;
  whole.append(qiov);
  whole.append(tail);
  return write_clusters(whole, clusters.offset);
}

absl::Status CompressDriver::discard(ByteRange range) {
  const Hold hold(&ranges_, whole_clusters(range), Mode::kShared);
  return child().discard(range);
}

absl::Status CompressDriver::write_zeroes(ByteRange range,
                                          WriteZeroesFlags flags) {
  const Hold hold(&ranges_, whole_clusters(range), Mode::kShared);
  return child().write_zeroes(range, flags);
}

absl::Status CompressDriver::write_compressed(const IoVector& qiov,
                                              Sector sector) {
  return write(qiov, sector);
}

// ---- Opening ----------------------------------------------------------------

namespace {

class CompressFilter final : public DriverFilter {
 public:
  absl::string_view name() const override { return "compress"; }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child,
      const OpenOptions& options) const override {
    const FilterOptions own(name(), options.driver_options);
    if (absl::Status status = own.finish(); !status.ok()) return status;
    return CompressDriver::create(std::move(child));
  }
};

}  // namespace

const DriverFilter* compress_filter() {
  static const auto* const filter = new CompressFilter;
  return filter;
}

}  // namespace spindle

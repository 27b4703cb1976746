#include "engine/jobs/compare.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/aligned_buffer.h"
#include "engine/io_vector.h"
#include "engine/jobs/job_buffer.h"
#include "engine/jobs/sector_status.h"
#include "engine/run_pieces.h"
#include "engine/sector.h"

namespace spindle {
namespace {

using Kind = CompareResult::Kind;

// What one worker compares, and how much of it at one time: both buffers fit
// into a processor's cache.
constexpr uint64_t kWindowBytes = uint64_t{4} << 20;
constexpr uint64_t kBufferBytes = uint64_t{256} << 10;
// Windows between two looks at what was found.
constexpr size_t kWindowsAtOnce = 16;
constexpr size_t kMaxHelpers = 16;

class Comparer {
 public:
  Comparer(BlockDevice& first, BlockDevice& second,
           const CompareOptions& options)
      : devices_{&first, &second},
        options_(options),
        lengths_{whole_sectors_bytes(first), whole_sectors_bytes(second)} {}

  CompareResult run();

 private:
  using Buffers = std::array<AlignedBuffer, 2>;
  // Compares [begin, end) in windows.
  CompareResult compare(uint64_t begin, uint64_t end);
  CompareResult compare_window(ByteRange range) const;
  CompareResult compare_run(ByteRange range, const BlockStatus (&status)[2],
                            Buffers* buffers) const;
  CompareResult compare_data(ByteRange range, const bool (&is_read)[2],
                             Buffers* buffers) const;
  static CompareResult failure(Kind kind, uint64_t offset, int image,
                               absl::Status status) {
    CompareResult result;
    result.kind = kind;
    result.offset = offset;
    result.failed_image = image;
    result.failure = std::move(status);
    return result;
  }
  static CompareResult mismatch(Kind kind, uint64_t offset) {
    return failure(kind, offset, 0, absl::OkStatus());
  }

  BlockDevice* const devices_[2];
  const CompareOptions& options_;
  const uint64_t lengths_[2];
};

// The first sector in which they are not the same; `bytes` if there is none.
uint64_t equal_bytes(const uint8_t* a, const uint8_t* b, uint64_t bytes) {
  if (std::memcmp(a, b, bytes) == 0) return bytes;
  uint64_t at = 0;
  while (at < bytes) {
    const uint64_t sector = std::min(kSectorSizeBytes, bytes - at);
    if (std::memcmp(a + at, b + at, sector) != 0) break;
    at += sector;
  }
  return at;
}

uint64_t zero_bytes(const uint8_t* data, uint64_t bytes) {
  if (IoVector(const_cast<uint8_t*>(data), bytes).is_zero()) return bytes;
  uint64_t at = 0;
  while (at < bytes) {
    const uint64_t sector = std::min(kSectorSizeBytes, bytes - at);
    if (!IoVector(const_cast<uint8_t*>(data) + at, sector).is_zero()) break;
    at += sector;
  }
  return at;
}

CompareResult Comparer::run() {
  const uint64_t shorter = std::min(lengths_[0], lengths_[1]);
  const uint64_t longer = std::max(lengths_[0], lengths_[1]);
  if (options_.strict && shorter != longer)
    return mismatch(Kind::kLengthMismatch, shorter);
  CompareResult result = compare(0, shorter);
  if (result.kind != Kind::kIdentical || shorter == longer) return result;
  result = compare(shorter, longer);
  result.reached_longer_part = true;
  return result;
}

CompareResult Comparer::compare(uint64_t begin, uint64_t end) {
  const uint64_t total = std::max(lengths_[0], lengths_[1]);
  for (uint64_t at = begin; at < end;) {
    options_.job.report(at, total);
    const absl::Status status = options_.job.check_cancelled();
    if (!status.ok()) return failure(Kind::kCancelled, at, 0, status);
    const size_t count = static_cast<size_t>(std::min<uint64_t>(
        kWindowsAtOnce, (end - at + kWindowBytes - 1) / kWindowBytes));
    std::vector<CompareResult> results(count);
    run_pieces(options_.job.executor, count, kMaxHelpers, [&](size_t i) {
      const uint64_t offset = at + i * kWindowBytes;
      results[i] =
          compare_window({offset, std::min(kWindowBytes, end - offset)});
    });
    for (CompareResult& result : results) {
      if (result.kind != Kind::kIdentical) return std::move(result);
    }
    at = std::min(end, at + count * kWindowBytes);
  }
  options_.job.report(end, total);
  return {};
}

CompareResult Comparer::compare_window(ByteRange range) const {
  Buffers buffers;
  while (!range.empty()) {
    BlockStatus status[2];
    uint64_t length = range.length;
    for (int i = 0; i < 2; ++i) {
      if (range.offset >= lengths_[i]) {
        status[i].zero = true;
        continue;
      }
      const absl::StatusOr<BlockStatus> found = sector_status(
          *devices_[i],
          {range.offset, std::min(length, lengths_[i] - range.offset)},
          BlockStatusScope::kWholeChain);
      if (!found.ok())
        return failure(Kind::kStatusFailed, range.offset, i, found.status());
      status[i] = *found;
      length = std::min(length, found->length);
    }
    CompareResult result =
        compare_run({range.offset, length}, status, &buffers);
    if (result.kind != Kind::kIdentical) return result;
    range = {range.offset + length, range.length - length};
  }
  return {};
}

CompareResult Comparer::compare_run(ByteRange range,
                                    const BlockStatus (&status)[2],
                                    Buffers* buffers) const {
  const auto same_kind = [&status](bool BlockStatus::* flag) {
    return status[0].*flag == status[1].*flag;
  };
  if (options_.strict &&
      (!same_kind(&BlockStatus::allocated) || !same_kind(&BlockStatus::data) ||
       !same_kind(&BlockStatus::zero))) {
    return mismatch(Kind::kStatusMismatch, range.offset);
  }
  const bool is_read[2] = {!status[0].zero, !status[1].zero};
  if (!is_read[0] && !is_read[1]) return {};
  while (!range.empty()) {
    const uint64_t length = std::min(range.length, kBufferBytes);
    CompareResult result =
        compare_data({range.offset, length}, is_read, buffers);
    if (result.kind != Kind::kIdentical) return result;
    range = {range.offset + length, range.length - length};
  }
  return {};
}

CompareResult Comparer::compare_data(ByteRange range, const bool (&is_read)[2],
                                     Buffers* buffers) const {
  for (int i = 0; i < 2; ++i) {
    if (!is_read[i]) continue;
    AlignedBuffer& buffer = (*buffers)[i];
    need_job_buffer(kBufferBytes, &buffer);
    const absl::Status status =
        devices_[i]->read(IoVector(buffer.data(), range.length),
                          Sector::from_byte_offset(range.offset));
    if (!status.ok())
      return failure(Kind::kReadFailed, range.offset, i, status);
  }
  const uint64_t same =
      is_read[0] && is_read[1]
          ? equal_bytes((*buffers)[0].data(), (*buffers)[1].data(),
                        range.length)
          : zero_bytes((*buffers)[is_read[0] ? 0 : 1].data(), range.length);
  if (same == range.length) return {};
  return mismatch(Kind::kContentMismatch, range.offset + same);
}

}  // namespace

CompareResult compare_images(BlockDevice& first, BlockDevice& second,
                             const CompareOptions& options) {
  return Comparer(first, second, options).run();
}

}  // namespace spindle

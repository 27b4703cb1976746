#include "formats/qcow/allocator.h"

#include <cerrno>
#include <iterator>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {

Allocator::Allocator(uint64_t cluster_bytes, uint64_t file_bytes,
                     const MetadataExtents* extents)
    : cluster_bytes_(cluster_bytes),
      extents_(extents),
      high_water_(align_up(file_bytes, cluster_bytes)),
      end_(align_up(file_bytes, cluster_bytes)) {}

void Allocator::note_file_end(uint64_t file_bytes) {
  MetadataLock lock(&mutex_);
  const uint64_t end = align_up(file_bytes, cluster_bytes_);
  if (end <= high_water_.load(std::memory_order_relaxed)) return;
  end_ = end;
  high_water_.store(end, std::memory_order_release);
}

absl::StatusOr<Allocator::Allocation> Allocator::allocate(uint64_t bytes) {
  return allocate_aligned(bytes, cluster_bytes_);
}

absl::StatusOr<Allocator::Allocation> Allocator::allocate_compressed(
    uint64_t bytes) {
  return allocate_aligned(bytes, kSectorSizeBytes);
}

absl::StatusOr<Allocator::Allocation> Allocator::allocate_aligned(
    uint64_t bytes, uint64_t alignment) {
  MetadataLock lock(&mutex_);
  Allocation allocation;
  allocation.range = take_returned_locked(bytes, alignment);
  if (allocation.range.empty()) {
    const std::optional<uint64_t> begin = checked_align_up(end_, alignment);
    const std::optional<uint64_t> end =
        begin.has_value() ? checked_add(*begin, bytes) : std::nullopt;
    if (!end.has_value() || *end > kMaxFileBytes - kSectorSizeBytes) {
      return errno_status(
          ENOSPC, absl::StrCat("the image's file would become longer than ",
                               kMaxFileBytes, " bytes"));
    }
    allocation.range = {*begin, bytes};
    allocation.reads_as_zeroes =
        *begin >= high_water_.load(std::memory_order_relaxed);
    end_ = align_up(*end, kSectorSizeBytes);
    if (end_ > high_water_.load(std::memory_order_relaxed))
      high_water_.store(end_, std::memory_order_release);
  }
  // Nothing of the image's lies there, unless our books are wrong.
  if (const auto metadata = extents_->find_overlap(allocation.range)) {
    return absl::DataLossError(absl::StrCat(
        "space at host offset ", allocation.range.offset,
        " would be taken from the image's ", metadata_kind_name(*metadata)));
  }
  return allocation;
}

ByteRange Allocator::take_returned_locked(uint64_t bytes, uint64_t alignment) {
  for (const auto& [begin, end] : returned_) {
    const uint64_t aligned = align_up(begin, alignment);
    if (aligned > end || end - aligned < bytes) continue;
    const ByteRange taken{aligned, bytes};
    const uint64_t first = begin;
    const uint64_t last = end;
    returned_.erase(first);
    if (first < taken.offset) returned_[first] = taken.offset;
    const uint64_t rest = align_up(taken.end(), kSectorSizeBytes);
    if (rest < last) returned_[rest] = last;
    return taken;
  }
  return {};
}

void Allocator::free_unpublished(ByteRange range) {
  MetadataLock lock(&mutex_);
  uint64_t begin = range.offset;
  uint64_t end = align_up(range.end(), kSectorSizeBytes);
  // Together with what it touches.
  auto next = returned_.lower_bound(begin);
  if (next != returned_.end() && next->first == end) {
    end = next->second;
    next = returned_.erase(next);
  }
  if (next != returned_.begin() && std::prev(next)->second == begin) {
    begin = std::prev(next)->first;
    returned_.erase(begin);
  }
  if (end == end_) {
    end_ = begin;
  } else {
    returned_[begin] = end;
  }
}

void Allocator::note_published(ByteRange range) {
  uint64_t before = published_end_.load(std::memory_order_relaxed);
  while (before < range.end() &&
         !published_end_.compare_exchange_weak(before, range.end(),
                                               std::memory_order_acq_rel)) {
  }
}

}  // namespace spindle::qcow

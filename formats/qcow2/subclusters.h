// Subclusters: what an L2 entry says about the parts of its cluster, and what
// its bitmap becomes when some of them change.
//
// qcow2 specification, "Extended L2 Entries".  Pure functions; in an image
// without subclusters a cluster counts as its only one where a Geometry is
// asked for.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW2_SUBCLUSTERS_H_
#define SPINDLE_FORMATS_QCOW2_SUBCLUSTERS_H_

#include <algorithm>
#include <bit>
#include <cstdint>

#include "formats/qcow2/address.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {

// Subclusters [first, end) of one cluster.
struct SubclusterSpan {
  uint32_t first = 0;
  uint32_t end = 0;
  constexpr bool operator==(const SubclusterSpan&) const = default;
};

// The "allocated" bits of `span`.
constexpr uint64_t allocated_bits(SubclusterSpan span) {
  return (uint64_t{1} << span.end) - (uint64_t{1} << span.first);
}
// The "reads as zeroes" bits of `span`.
constexpr uint64_t zero_bits(SubclusterSpan span) {
  return allocated_bits(span) << kSubclustersPerCluster;
}

// `span` holds data now.
constexpr uint64_t bitmap_after_write(uint64_t bitmap, SubclusterSpan span) {
  return (bitmap | allocated_bits(span)) & ~zero_bits(span);
}
// `span` reads as zeroes now.
constexpr uint64_t bitmap_after_zero(uint64_t bitmap, SubclusterSpan span) {
  return (bitmap | zero_bits(span)) & ~allocated_bits(span);
}

// False if the bitmap contradicts itself, or the descriptor: data without a
// host cluster, or data and zeroes in one place.
constexpr bool is_valid_bitmap(L2Entry entry) {
  if (entry.kind() == ClusterKind::kCompressed) return true;
  if (!entry.has_host()) return (entry.bitmap() & kBitmapAllAllocated) == 0;
  return (entry.bitmap() >> kSubclustersPerCluster & entry.bitmap()) == 0;
}

// What the subcluster `index` is.  kUnallocated: the backing file shows
// through, whether there is a host cluster or not.
// REQUIRES: subclusters, is_valid_bitmap(), index < 32.
constexpr ClusterKind subcluster_kind(L2Entry entry, uint32_t index) {
  if (entry.kind() == ClusterKind::kCompressed) return ClusterKind::kCompressed;
  const SubclusterSpan span{index, index + 1};
  if ((entry.bitmap() & zero_bits(span)) != 0) {
    return entry.has_host() ? ClusterKind::kZeroAllocated
                            : ClusterKind::kZeroPlain;
  }
  return (entry.bitmap() & allocated_bits(span)) != 0
             ? ClusterKind::kNormal
             : ClusterKind::kUnallocated;
}

// One past the last subcluster from `index` on that is of the same kind.
// REQUIRES: as subcluster_kind().
constexpr uint32_t end_of_same_kind(L2Entry entry, uint32_t index) {
  const auto allocated = static_cast<uint32_t>(entry.bitmap());
  const auto zero =
      static_cast<uint32_t>(entry.bitmap() >> kSubclustersPerCluster);
  uint32_t same = 0;
  switch (subcluster_kind(entry, index)) {
    case ClusterKind::kCompressed:
      return kSubclustersPerCluster;
    case ClusterKind::kNormal:
      same = allocated;
      break;
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      same = zero;
      break;
    case ClusterKind::kUnallocated:
      same = ~(allocated | zero);
      break;
  }
  return index + static_cast<uint32_t>(std::countr_one(same >> index));
}

// What a write to `written` in a cluster with the entry `old` has to fill if it
// goes to a host cluster of its own that is not that of `old` (the rest of
// `written`, and the other data), with everything that lies between.
constexpr SubclusterSpan span_to_copy(L2Entry old, SubclusterSpan written) {
  if (old.kind() == ClusterKind::kCompressed)
    return {0, kSubclustersPerCluster};
  const auto data = static_cast<uint32_t>(old.bitmap());
  if (!old.has_host() || data == 0) return written;
  const auto first = static_cast<uint32_t>(std::countr_zero(data));
  const auto end =
      kSubclustersPerCluster - static_cast<uint32_t>(std::countl_zero(data));
  return {std::min(written.first, first), std::max(written.end, end)};
}

// The part of the cluster at `cluster_start` that [begin, end) touches.
// REQUIRES: subclusters; the range touches the cluster.
constexpr SubclusterSpan touched_span(const Geometry& geometry,
                                      uint64_t cluster_start, uint64_t begin,
                                      uint64_t end) {
  const uint32_t bits = geometry.subcluster_bits();
  const uint64_t from = std::max(begin, cluster_start) - cluster_start;
  const uint64_t to =
      std::min(end, cluster_start + geometry.cluster_bytes()) - cluster_start;
  return {static_cast<uint32_t>(from >> bits),
          static_cast<uint32_t>((to - 1) >> bits) + 1};
}

// A stretch of guest bytes, within one cluster, that are of one kind.
struct KindRun {
  ClusterKind kind = ClusterKind::kUnallocated;
  uint64_t bytes = 0;
};
// The longest one from `guest` on in the cluster whose entry is `entry`.
constexpr KindRun kind_run(const Geometry& geometry, L2Entry entry,
                           GuestOffset guest) {
  const uint64_t into_cluster = geometry.offset_in_cluster(guest.bytes);
  if (!geometry.extended_l2)
    return {entry.kind(), geometry.cluster_bytes() - into_cluster};
  const auto index =
      static_cast<uint32_t>(into_cluster >> geometry.subcluster_bits());
  const uint64_t end = uint64_t{end_of_same_kind(entry, index)}
                       << geometry.subcluster_bits();
  return {subcluster_kind(entry, index), end - into_cluster};
}

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SUBCLUSTERS_H_

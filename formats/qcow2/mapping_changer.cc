#include "formats/qcow2/mapping_changer.h"

#include <algorithm>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"

namespace spindle::qcow2 {

absl::Status MappingChanger::discard(ByteRange range) {
  const Geometry& geometry = image_.geometry();
  if (geometry.version < 3 && image_.backing() != nullptr)
    return absl::OkStatus();
  const uint64_t begin = align_up(range.offset, geometry.cluster_bytes());
  const uint64_t end = range.end() == geometry.size_bytes
                           ? align_up(range.end(), geometry.cluster_bytes())
                           : geometry.cluster_start(range.end());
  if (begin >= end) return absl::OkStatus();
  // Without a backing file a missing table says "zeroes" already; QEMU makes
  // one all the same, and where its placement is wanted, so does this.
  const bool create_tables =
      image_.backing() != nullptr || image_.places_like_qemu();
  return change({begin, end - begin}, create_tables,
                [this](GuestOffset, L2Entry old) { return discarded(old); });
}

L2Entry MappingChanger::discarded(L2Entry old) const {
  const ClusterKind kind = old.kind();
  const bool holds_nothing =
      kind == ClusterKind::kZeroPlain ||
      (kind == ClusterKind::kUnallocated && image_.backing() == nullptr);
  if (holds_nothing) return old;
  return image_.geometry().version >= 3 ? L2Entry::zero_plain() : L2Entry();
}

absl::Status MappingChanger::write_zeroes(ByteRange range,
                                          WriteZeroesFlags flags) {
  const Geometry& geometry = image_.geometry();
  const bool has_zero_flag = geometry.version >= 3;
  if (!has_zero_flag && image_.backing() != nullptr) {
    return absl::UnimplementedError("qcow2 version 2 has no zero clusters");
  }
  const uint64_t begin = geometry.cluster_start(range.offset);
  const uint64_t end = align_up(range.end(), geometry.cluster_bytes());
  // What hangs over at either side must read as zeroes already.
  const absl::StatusOr<bool> before =
      backing_is_zero({begin, range.offset - begin});
  if (!before.ok()) return before.status();
  // The range may reach to the end of a last, partial sector.
  const uint64_t image_end =
      std::max(range.end(), std::min(end, geometry.size_bytes));
  const absl::StatusOr<bool> behind =
      backing_is_zero({range.end(), image_end - range.end()});
  if (!behind.ok()) return behind.status();

  const auto replace = [&](GuestOffset guest,
                           L2Entry old) -> std::optional<L2Entry> {
    const uint64_t cluster_end =
        std::min(guest.bytes + geometry.cluster_bytes(), geometry.size_bytes);
    const bool is_zero_before = guest.bytes >= range.offset || *before;
    const bool is_zero_behind = cluster_end <= range.end() || *behind;
    const bool is_whole =
        range.contains({guest.bytes, cluster_end - guest.bytes});
    if (!is_whole &&
        !reads_as_zeroes(guest, old, is_zero_before && is_zero_behind)) {
      return std::nullopt;
    }
    // Without a backing file, no entry at all says "zeroes".
    if (!has_zero_flag) return L2Entry();
    const ClusterKind kind = old.kind();
    const bool is_allocated =
        kind == ClusterKind::kNormal || kind == ClusterKind::kZeroAllocated;
    if (kind == ClusterKind::kCompressed || (flags.may_unmap && is_allocated)) {
      return L2Entry::zero_plain();
    }
    return L2Entry(old.raw() | kL2ZeroFlag);
  };
  return change({begin, end - begin},
                /*create_tables=*/has_zero_flag || image_.places_like_qemu(),
                replace);
}

bool MappingChanger::reads_as_zeroes(GuestOffset guest, L2Entry entry,
                                     bool backing_is_zero) const {
  switch (entry.kind()) {
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      return true;
    case ClusterKind::kUnallocated:
      return backing_is_zero || !image_.has_backing_at(guest);
    case ClusterKind::kNormal:
    case ClusterKind::kCompressed:
      return false;
  }
  return false;
}

absl::StatusOr<bool> MappingChanger::backing_is_zero(ByteRange range) {
  while (!range.empty() && image_.has_backing_at({range.offset})) {
    ByteChannel& backing = *image_.backing();
    const uint64_t length =
        std::min(range.length, backing.length_bytes() - range.offset);
    const absl::StatusOr<BlockStatus> status =
        backing.block_status({range.offset, length});
    if (!status.ok()) return status.status();
    if (!status->zero) return false;
    range = {range.offset + status->length, range.length - status->length};
  }
  return true;
}

absl::Status MappingChanger::change(ByteRange clusters, bool create_tables,
                                    Replace replace) {
  while (!clusters.empty()) {
    absl::Status status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    const uint64_t length = std::min(
        clusters.length, image_.map().bytes_left_in_slice({clusters.offset}));
    status = change_in_slice({clusters.offset, length}, create_tables, replace);
    if (!status.ok()) return status;
    clusters = {clusters.offset + length, clusters.length - length};
  }
  return absl::OkStatus();
}

absl::Status MappingChanger::change_in_slice(ByteRange clusters,
                                             bool create_tables,
                                             Replace replace) {
  const Geometry& geometry = image_.geometry();
  const GuestOffset guest{clusters.offset};
  FirstWrites::Ticket ticket = image_.first_writes().enter_alone(clusters);
  const auto leave = [&] {
    image_.first_writes().finish(std::move(ticket), /*succeeded=*/false, [] {});
  };
  absl::StatusOr<SliceRef> slice =
      create_tables ? image_.map().slice_for_update(guest)
                    : image_.map().slice_for_update_if_present(guest);
  if (!slice.ok() || !*slice) {
    leave();
    return slice.status();
  }
  absl::InlinedVector<HostClusters, 16> dropped;
  absl::Status damaged;
  bool could_change = true;
  {
    const size_t first_index = image_.map().index_in_slice(guest);
    MetadataLock lock(&(*slice)->mutex);
    for (uint64_t i = 0; i < geometry.clusters_for(clusters.length); ++i) {
      const L2Entry old((*slice)->load64(first_index + i));
      const GuestOffset at{clusters.offset + geometry.cluster_offset(i)};
      damaged = image_.map().check_entry(at, old);
      if (!damaged.ok()) break;
      const std::optional<L2Entry> replacement = replace(at, old);
      could_change = replacement.has_value();
      if (!could_change) break;
      if (*replacement == old) continue;
      (*slice)->store64(first_index + i, replacement->raw());
      if (!replacement->has_host()) dropped.push_back(old.references(geometry));
    }
  }
  for (const HostClusters& host : dropped) image_.pending().add_dropped(host);
  leave();
  if (!damaged.ok()) return image_.corruption().report(damaged.message());
  if (!could_change)
    return absl::UnimplementedError("part of a qcow2 cluster that holds data");
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

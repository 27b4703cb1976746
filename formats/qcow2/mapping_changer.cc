#include "formats/qcow2/mapping_changer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/range_tracker.h"
#include "formats/qcow2/data_clusters.h"
#include "formats/qcow2/l2_slice.h"
#include "formats/qcow2/subclusters.h"

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
  const DataClusters::Turn turn = image_.data_clusters().take_turn(
      {begin, end - begin}, RangeTracker::Mode::kExclusive);
  absl::Status status = image_.data_clusters().zero_raw({begin, end - begin},
                                                        {.may_unmap = true});
  if (!status.ok()) return status;
  // Without a backing file a missing table says "zeroes" already; QEMU makes
  // one all the same, and where its placement is wanted, so does this.
  const bool create_tables =
      image_.backing() != nullptr || image_.places_like_qemu();
  return change({begin, end - begin},
                {.create_tables = create_tables, .gives_up_space = true},
                [this](GuestOffset, L2Entry old) { return discarded(old); });
}

L2Entry MappingChanger::discarded(L2Entry old) const {
  const ClusterKind kind = old.kind();
  // Over a backing file all change into what they may be already: a cluster of
  // zeroes with subclusters is kUnallocated, and one that lay at 0 of a data
  // file may still say that it is the only reference.
  const bool holds_nothing =
      kind == ClusterKind::kZeroPlain || kind == ClusterKind::kUnallocated;
  if (holds_nothing && image_.backing() == nullptr) return old;
  if (image_.keeps_discarded() && kind != ClusterKind::kCompressed)
    return kept_zero(old);
  return image_.geometry().version >= 3 ? L2Entry::zero_plain(image_.geometry())
                                        : L2Entry();
}

absl::Status MappingChanger::write_zeroes(ByteRange range,
                                          WriteZeroesFlags flags) {
  const Geometry& geometry = image_.geometry();
  const bool has_zero_flag = geometry.version >= 3;
  if (!has_zero_flag && image_.backing() != nullptr) {
    return absl::UnimplementedError("qcow2 version 2 has no zero clusters");
  }
  const uint64_t begin = align_down(range.offset, geometry.subcluster_bytes());
  const uint64_t end = align_up(range.end(), geometry.subcluster_bytes());
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

  const DataClusters::Turn turn =
      image_.data_clusters().take_turn(range, RangeTracker::Mode::kExclusive);
  absl::Status raw_zeroed = image_.data_clusters().zero_raw(range, flags);
  if (!raw_zeroed.ok()) return raw_zeroed;
  const auto replace = [&](GuestOffset guest,
                           L2Entry old) -> std::optional<L2Entry> {
    const uint64_t cluster_end =
        std::min(guest.bytes + geometry.cluster_bytes(), geometry.size_bytes);
    // A cluster, or subcluster, of which the range covers only a part.
    const auto stays_right = [&](uint64_t at, bool around_is_zero) {
      return at < guest.bytes || at >= cluster_end ||
             reads_as_zeroes({at}, old, around_is_zero);
    };
    const bool is_right_before =
        range.offset == begin || stays_right(begin, *before);
    const bool is_right_behind =
        range.end() == image_end ||
        stays_right(end - geometry.subcluster_bytes(), *behind);
    if (!is_right_before || !is_right_behind) return std::nullopt;
    const bool is_whole = begin <= guest.bytes && end >= cluster_end;
    if (!is_whole) {
      if (old.kind() == ClusterKind::kCompressed) return std::nullopt;
      return old.with_bitmap(bitmap_after_zero(
          old.bitmap(), touched_span(geometry, guest.bytes, begin, end)));
    }
    return zeroed(old, flags);
  };
  return change({begin, end - begin},
                {.create_tables = has_zero_flag || image_.places_like_qemu(),
                 .gives_up_space = flags.may_unmap},
                replace);
}

L2Entry MappingChanger::zeroed(L2Entry old, WriteZeroesFlags flags) const {
  const Geometry& geometry = image_.geometry();
  // Without a backing file, no entry at all says "zeroes".
  if (geometry.version < 3) return L2Entry();
  const ClusterKind kind = old.kind();
  const bool is_allocated =
      kind == ClusterKind::kNormal || kind == ClusterKind::kZeroAllocated;
  const bool drops_host =
      flags.may_unmap && is_allocated && !image_.keeps_discarded();
  return kind == ClusterKind::kCompressed || drops_host
             ? L2Entry::zero_plain(geometry)
             : kept_zero(old);
}

L2Entry MappingChanger::kept_zero(L2Entry old) const {
  const L2Entry zero = L2Entry::zero_plain(image_.geometry());
  return L2Entry(old.raw() | zero.raw(), zero.bitmap());
}

absl::Status MappingChanger::forget(ByteRange clusters, bool create_tables) {
  return change(clusters, {.create_tables = create_tables},
                [](GuestOffset, L2Entry) { return L2Entry(); });
}

absl::Status MappingChanger::mark_zero(ByteRange clusters) {
  return change(clusters, {.create_tables = true},
                [this](GuestOffset, L2Entry old) { return zeroed(old, {}); });
}

bool MappingChanger::reads_as_zeroes(GuestOffset guest, L2Entry entry,
                                     bool backing_is_zero) const {
  switch (kind_run(image_.geometry(), entry, guest).kind) {
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

absl::Status MappingChanger::change(ByteRange range, ChangeOptions options,
                                    Replace replace) {
  while (!range.empty()) {
    absl::Status status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    const uint64_t length = std::min(
        range.length, image_.map().bytes_left_in_slice({range.offset}));
    status = change_in_slice({range.offset, length}, options, replace);
    if (!status.ok()) return status;
    range = {range.offset + length, range.length - length};
  }
  return absl::OkStatus();
}

void MappingChanger::note_kept(GuestOffset guest, L2Entry entry,
                               bool gives_up_space) {
  const Geometry& geometry = image_.geometry();
  const bool is_zero = entry == kept_zero(entry);
  if (!gives_up_space || !is_zero || !entry.is_own()) {
    image_.kept_discards().remove(guest);
  } else if (image_.data_clusters().is_external()) {
    image_.data_clusters().forget({guest.bytes, geometry.cluster_bytes()});
  } else if (image_.punches_holes()) {
    image_.kept_discards().add(guest, entry.host());
  }
}

absl::Status MappingChanger::change_in_slice(ByteRange range,
                                             ChangeOptions options,
                                             Replace replace) {
  const Geometry& geometry = image_.geometry();
  const GuestOffset guest{geometry.cluster_start(range.offset)};
  FirstWrites::Ticket ticket = image_.first_writes().enter_alone(range);
  const auto leave = [&] {
    image_.first_writes().finish(std::move(ticket), /*succeeded=*/false, [] {});
  };
  absl::StatusOr<SliceRef> slice =
      options.create_tables ? image_.map().slice_for_update(guest)
                            : image_.map().slice_for_update_if_present(guest);
  if (!slice.ok() || !*slice) {
    leave();
    return slice.status();
  }
  absl::InlinedVector<HostClusters, 16> dropped;
  std::vector<ByteRange> forgotten;  // of guest clusters
  std::vector<std::pair<GuestOffset, L2Entry>> kept;
  absl::Status damaged;
  bool could_change = true;
  {
    const size_t first_index = image_.map().index_in_slice(guest);
    MetadataLock lock(&(*slice)->mutex);
    const uint64_t count = geometry.clusters_for(range.end() - guest.bytes);
    for (uint64_t i = 0; i < count; ++i) {
      const L2Entry old = load_entry(*slice->get(), geometry, first_index + i);
      const GuestOffset at{guest.bytes + geometry.cluster_offset(i)};
      damaged = image_.map().check_entry(at, old);
      if (!damaged.ok()) break;
      const std::optional<L2Entry> replacement = replace(at, old);
      could_change = replacement.has_value();
      if (!could_change) break;
      if (*replacement == old) continue;
      store_entry(slice->get(), geometry, first_index + i, *replacement);
      if (replacement->has_host()) {
        kept.emplace_back(at, *replacement);
        continue;
      }
      dropped.push_back(old.references(geometry));
      if (!old.has_host()) continue;
      if (forgotten.empty() || forgotten.back().end() != at.bytes)
        forgotten.push_back({at.bytes, 0});
      forgotten.back().length += geometry.cluster_bytes();
    }
  }
  for (const HostClusters& host : dropped) image_.pending().add_dropped(host);
  for (const ByteRange& range : forgotten) image_.data_clusters().forget(range);
  if (image_.keeps_discarded()) {
    for (const auto& [at, entry] : kept)
      note_kept(at, entry, options.gives_up_space);
  }
  leave();
  if (!damaged.ok()) return image_.corruption().report(damaged.message());
  if (!could_change)
    return absl::UnimplementedError("part of a qcow2 cluster that holds data");
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

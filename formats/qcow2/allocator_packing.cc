// Space for compressed clusters: packed by the byte into host clusters that
// they share.
//
// Placement is QEMU's: behind what was packed last, if it fits into that host
// cluster, or goes on in the next one and the search for a free cluster finds
// just that; else at the start of a cluster of its own.  Each compressed
// cluster counts once in every host cluster that it touches, so sharing ends
// where the refcount does.
#include <algorithm>

#include "engine/checked_math.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {

absl::StatusOr<Allocator::PackedBytes> Allocator::allocate_bytes(
    uint64_t bytes) {
  PackedBytes packed;
  // QEMU starts a cluster of its own after it has added a refcount block.
  bool may_continue = true;
  absl::StatusOr<Allocation> allocation =
      allocate_with(/*run_clusters=*/2, [&](bool may_reclaim, Allocation*) {
        MetadataLock lock(&mutex_);
        if (!may_continue) packing_end_ = HostOffset{};
        Step step = try_pack_locked(bytes, may_reclaim, &packed);
        may_continue = step.need != Step::Need::kBlock;
        return step;
      });
  if (!allocation.ok()) return allocation.status();
  return packed;
}

// Clears packing_end_ if nothing may be added there.
Allocator::Step Allocator::check_packing_end_locked() {
  if (packing_end_.bytes == 0) return Step::done();
  const uint64_t cluster = geometry_.cluster_index(packing_end_.bytes);
  const HostOffset slice_host = slice_of(block_of_locked(cluster), cluster);
  const SliceRef slice = parts_.refblocks->try_get(slice_host);
  if (!slice) return Step::slice_at(slice_host);
  MetadataReaderLock lock(&slice->mutex);
  const uint64_t count = load_refcount(slice->bytes(), geometry_.refcount_order,
                                       cluster % entries_per_slice());
  if (count == geometry_.max_refcount()) packing_end_ = HostOffset{};
  return Step::done();
}

Allocator::Step Allocator::try_pack_locked(uint64_t bytes, bool may_reclaim,
                                           PackedBytes* packed) {
  Step step = check_packing_end_locked();
  if (step.need != Step::Need::kNothing) return step;
  const uint64_t into_cluster = geometry_.offset_in_cluster(packing_end_.bytes);
  const uint64_t room =
      packing_end_.bytes == 0 ? 0 : geometry_.cluster_bytes() - into_cluster;
  HostOffset host = packing_end_;
  if (room < bytes) {
    uint64_t fresh = 0;
    step = find_run_locked(next_free_, 1, &fresh);
    if (step.need != Step::Need::kNothing) return step;
    if (may_reclaim && wants_reclaim_locked(fresh, 1)) return Step::reclaim();
    const uint64_t next =
        geometry_.cluster_index(packing_end_.bytes + geometry_.cluster_bytes());
    const bool goes_on = room != 0 && fresh == next;
    if (!goes_on) host = HostOffset{geometry_.cluster_offset(fresh)};
    step = take_for_packing_locked(host, fresh, may_reclaim);
  } else {
    step = change_refcounts_locked({geometry_.cluster_index(host.bytes), 1}, 1);
  }
  if (step.need != Step::Need::kNothing) return step;

  const uint64_t first = geometry_.cluster_index(host.bytes);
  const uint64_t last = geometry_.cluster_index(host.bytes + bytes - 1);
  *packed = {host, {first, last - first + 1}};
  packing_end_ = HostOffset{host.bytes + bytes};
  // Nothing is left of that cluster.
  if (is_aligned(packing_end_.bytes, geometry_.cluster_bytes()))
    packing_end_ = HostOffset{};
  return Step::done();
}

// Takes the free cluster `fresh`, and one more reference to the one before it
// if the bytes at `host` begin there.
Allocator::Step Allocator::take_for_packing_locked(HostOffset host,
                                                   uint64_t fresh,
                                                   bool may_reclaim) {
  const uint64_t first = geometry_.cluster_index(host.bytes);
  // Nothing more can be asked for once the first of the two was changed.
  HeldSlices slices;
  Step step = prepare_slices_locked({first, fresh - first + 1}, &slices);
  Allocation allocation;
  if (step.need == Step::Need::kNothing)
    step = take_locked({fresh, 1}, may_reclaim, &allocation);
  if (step.need == Step::Need::kNothing && first != fresh)
    step = change_refcounts_locked({first, 1}, 1);
  // If the search starts over, the same cluster is tried first.
  next_free_ = step.need == Step::Need::kNothing ? fresh + 1
                                                 : std::min(next_free_, fresh);
  return step;
}

void Allocator::stop_packing_into(uint64_t cluster) {
  MetadataLock lock(&mutex_);
  stop_packing_into_locked(cluster);
}

void Allocator::stop_packing_into_locked(uint64_t cluster) {
  if (packing_end_.bytes != 0 &&
      geometry_.cluster_index(packing_end_.bytes) == cluster) {
    packing_end_ = HostOffset{};
  }
}

}  // namespace spindle::qcow2

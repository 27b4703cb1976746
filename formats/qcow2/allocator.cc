#include "formats/qcow2/allocator.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {
namespace {

// Slices that one operation keeps resident at most, besides those of its run.
constexpr size_t kMaxHeldSlices = 64;

absl::Status missing_block_error(HostClusters clusters) {
  return absl::DataLossError(
      absl::StrCat("host cluster ", clusters.first,
                   " is in use but no refcount block covers it"));
}

}  // namespace

Allocator::Allocator(Parts parts, Options options)
    : parts_(std::move(parts)),
      options_(options),
      geometry_(*parts_.geometry) {}

absl::Status Allocator::load(HostOffset table, uint64_t table_clusters) {
  const uint64_t bytes = geometry_.cluster_offset(table_clusters);
  std::vector<uint8_t> raw(bytes);
  absl::Status status = parts_.file->read(Purpose::kReftableLoad, raw.data(),
                                          raw.size(), table.bytes);
  if (!status.ok()) return status;

  const uint64_t file_length = parts_.file->length_bytes();
  std::vector<uint64_t> blocks(bytes / kRefcountTableEntryBytes);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = load_big64(&raw[i * kRefcountTableEntryBytes]) &
                kRefcountTableOffsetMask;
    if (!is_aligned(blocks[i], geometry_.cluster_bytes()) ||
        blocks[i] >= file_length) {
      if (blocks[i] == 0) continue;
      return absl::DataLossError(absl::StrCat(
          "refcount table entry ", i, " names a refcount block at host offset ",
          blocks[i], ", which is not a multiple of the cluster size ",
          geometry_.cluster_bytes(), " or not below the file's length ",
          file_length));
    }
  }

  MetadataLock lock(&mutex_);
  table_ = std::move(blocks);
  table_host_ = table;
  table_clusters_ = table_clusters;
  return absl::OkStatus();
}

void Allocator::note_file_end() {
  high_water_.store(geometry_.clusters_for(parts_.file->length_bytes()),
                    std::memory_order_release);
}

std::vector<HostOffset> Allocator::refcount_blocks() const {
  MetadataLock lock(&mutex_);
  std::vector<HostOffset> blocks;
  for (uint64_t offset : table_) {
    if (offset != 0) blocks.push_back(HostOffset{offset});
  }
  return blocks;
}

uint64_t Allocator::published_end_bytes() const {
  return geometry_.cluster_offset(
      published_end_.load(std::memory_order_acquire));
}

void Allocator::note_published(HostClusters clusters) {
  uint64_t end = published_end_.load(std::memory_order_relaxed);
  while (end < clusters.end() &&
         !published_end_.compare_exchange_weak(end, clusters.end(),
                                               std::memory_order_acq_rel)) {
  }
}

bool Allocator::is_beyond_high_water(HostClusters clusters) const {
  return clusters.end() > high_water_.load(std::memory_order_acquire);
}

uint64_t Allocator::entries_per_slice() const {
  return (uint64_t{geometry_.slice_bytes} * 8) >> geometry_.refcount_order;
}

HostOffset Allocator::block_of_locked(uint64_t cluster) const {
  const uint64_t index = cluster >> geometry_.refblock_entry_bits();
  return HostOffset{index < table_.size() ? table_[index] : 0};
}

HostOffset Allocator::slice_of(HostOffset block, uint64_t cluster) const {
  const uint64_t index = cluster & (geometry_.refblock_entries() - 1);
  return HostOffset{block.bytes +
                    index / entries_per_slice() * geometry_.slice_bytes};
}

bool Allocator::is_reserved_locked(uint64_t cluster) const {
  return std::any_of(reserved_.begin(), reserved_.end(),
                     [&](const HostClusters& run) {
                       return cluster >= run.first && cluster < run.end();
                     });
}

absl::Status Allocator::load_slice(HostOffset slice, HeldSlices* held,
                                   uint64_t run_clusters) {
  // Never fewer than the run has, which is changed as a whole.
  if (held->size() >= kMaxHeldSlices + run_clusters / entries_per_slice())
    held->clear();
  absl::StatusOr<SliceRef> loaded = parts_.refblocks->get(slice);
  if (!loaded.ok()) return loaded.status();
  held->push_back(*std::move(loaded));
  return absl::OkStatus();
}

// ---- Allocation ------------------------------------------------------------

absl::StatusOr<Allocator::Allocation> Allocator::allocate(uint64_t count) {
  return allocate_with(count, [&](bool may_reclaim, Allocation* allocation) {
    MetadataLock lock(&mutex_);
    return try_allocate_locked(count, may_reclaim, allocation);
  });
}

absl::StatusOr<Allocator::Allocation> Allocator::allocate_at(uint64_t first,
                                                             uint64_t count) {
  return allocate_with(count, [&](bool may_reclaim, Allocation* allocation) {
    MetadataLock lock(&mutex_);
    return try_allocate_at_locked({first, count}, may_reclaim, allocation);
  });
}

absl::StatusOr<Allocator::Allocation> Allocator::allocate_with(
    uint64_t run_clusters,
    absl::FunctionRef<Step(bool may_reclaim, Allocation* allocation)> attempt) {
  bool may_reclaim = true;
  while (true) {
    Allocation allocation;
    const absl::StatusOr<Step> step = with_slices(run_clusters, [&] {
      allocation = {};
      return attempt(may_reclaim, &allocation);
    });
    if (!step.ok()) return step.status();
    absl::Status status;
    switch (step->need) {
      case Step::Need::kNothing:
        return allocation;
      case Step::Need::kSlice:
        break;  // with_slices() has loaded it
      case Step::Need::kBlock:
        status = add_block(step->block_index, step->search_from);
        break;
      case Step::Need::kReclaim:
        status = recover_pending().status();
        may_reclaim = false;
        break;
      case Step::Need::kFailed:
        if (absl::IsDataLoss(step->status))
          return parts_.corruption->report(step->status.message());
        return step->status;
    }
    if (!status.ok()) return status;
  }
}

Allocator::Step Allocator::try_allocate_locked(uint64_t count, bool may_reclaim,
                                               Allocation* allocation) {
  uint64_t first = 0;
  Step step = find_run_locked(next_free_, count, &first);
  if (step.need != Step::Need::kNothing) return step;
  if (may_reclaim && wants_reclaim_locked(first, count)) return Step::reclaim();
  step = take_locked({first, count}, may_reclaim, allocation);
  // If the search starts over, the same clusters are tried first.
  next_free_ = step.need == Step::Need::kNothing ? first + count
                                                 : std::min(next_free_, first);
  return step;
}

Allocator::Step Allocator::try_allocate_at_locked(HostClusters wanted,
                                                  bool may_reclaim,
                                                  Allocation* allocation) {
  uint64_t end = wanted.first;
  while (end < wanted.end()) {
    if (!reserved_.empty() && is_reserved_locked(end)) break;
    uint64_t free_until = end;
    uint64_t scanned_to = end;
    const uint64_t limit = reserved_.empty() ? wanted.end() : end + 1;
    const Step step = scan_free_locked(end, limit, &free_until, &scanned_to);
    if (step.need != Step::Need::kNothing) return step;
    end = free_until;
    if (free_until != scanned_to || free_until == wanted.first) break;
  }
  const HostClusters clusters{wanted.first, end - wanted.first};
  const bool is_lowest = options_.reuse == ReusePolicy::kLowest;
  // What was freed just behind the run is free for whoever looks at the image.
  if (is_lowest && may_reclaim && clusters.count < wanted.count &&
      parts_.pending->count_to_come() != 0) {
    return Step::reclaim();
  }
  const bool should_reclaim =
      !is_lowest && wants_reclaim_locked(clusters.first, clusters.count);
  if (clusters.count == 0 || should_reclaim ||
      absl::IsResourceExhausted(check_run_locked(clusters))) {
    // allocate() finds something else.
    *allocation = Allocation{{wanted.first, 0}, false};
    return Step::done();
  }
  return take_locked(clusters, may_reclaim, allocation);
}

Allocator::Step Allocator::take_locked(HostClusters clusters, bool may_reclaim,
                                       Allocation* allocation) {
  if (absl::Status legal = check_run_locked(clusters); !legal.ok()) {
    // A full file is not final before what is pending was tried.
    if (may_reclaim && absl::IsResourceExhausted(legal) &&
        parts_.pending->count_to_come() != 0) {
      return Step::reclaim();
    }
    return Step::failed(std::move(legal));
  }
  const Step step = change_refcounts_locked(clusters, +1);
  if (step.need != Step::Need::kNothing) return step;
  allocation->clusters = clusters;
  allocation->reads_as_zeroes =
      clusters.first >= high_water_.load(std::memory_order_relaxed);
  note_use_locked(clusters);
  return step;
}

void Allocator::raise(std::atomic<uint64_t>* mark, uint64_t end) {
  mark->store(std::max(mark->load(std::memory_order_relaxed), end),
              std::memory_order_release);
}

void Allocator::note_use_locked(HostClusters clusters) {
  raise(&high_water_, clusters.end());
  raise(&allocated_end_, clusters.end());
}

absl::Status Allocator::check_run_locked(HostClusters clusters) const {
  const ByteRange range{geometry_.cluster_offset(clusters.first),
                        geometry_.cluster_offset(clusters.count)};
  if (!options_.file_grows && range.end() > parts_.file->length_bytes()) {
    return errno_status(
        ENOSPC, absl::StrCat("allocating ", range.length,
                             " bytes in a file that cannot grow beyond ",
                             parts_.file->length_bytes(), " bytes"));
  }
  if (const auto metadata = parts_.extents->find_overlap(range)) {
    return absl::DataLossError(
        absl::StrCat("host cluster ", clusters.first,
                     " has refcount 0 but holds the image's ",
                     metadata_kind_name(*metadata)));
  }
  return absl::OkStatus();
}

bool Allocator::wants_reclaim_locked(uint64_t first, uint64_t count) const {
  const uint64_t pending = parts_.pending->count_to_come();
  if (pending == 0) return false;
  if (options_.reuse == ReusePolicy::kLowest)
    return parts_.pending->lowest() < first;
  if (first + count <= high_water_.load(std::memory_order_relaxed))
    return false;
  // The file would grow although something waits to be reused: fine for a
  // while, as it saves syncs, but not beyond what the guest's data need.
  return geometry_.cluster_offset(pending) > options_.lazy_slack_bytes ||
         first + count > geometry_.clusters_for(geometry_.size_bytes);
}

Allocator::Step Allocator::find_run_locked(uint64_t from, uint64_t count,
                                           uint64_t* first) {
  uint64_t start = from;  // the run found so far is [start, at)
  uint64_t at = from;
  while (at - start < count) {
    if (geometry_.cluster_offset(start) > kMaxHostOffset ||
        start + count > (kMaxHostOffset >> geometry_.cluster_bits)) {
      return Step::failed(absl::ResourceExhaustedError(
          absl::StrCat("no free cluster below host offset ", kMaxHostOffset,
                       ", the limit of the format")));
    }
    if (!reserved_.empty() && is_reserved_locked(at)) {
      start = ++at;
      continue;
    }
    uint64_t free_until = at;
    uint64_t scanned_to = at;
    const uint64_t limit = reserved_.empty() ? start + count : at + 1;
    const Step step = scan_free_locked(at, limit, &free_until, &scanned_to);
    if (step.need != Step::Need::kNothing) {
      // Everything before the run was seen to be in use: a new start need not
      // look at it again.
      next_free_ = start;
      return step;
    }
    at = scanned_to;
    if (free_until != scanned_to) start = at;
  }
  *first = start;
  return Step::done();
}

Allocator::Step Allocator::scan_free_locked(uint64_t cluster, uint64_t limit,
                                            uint64_t* free_until,
                                            uint64_t* scanned_to) {
  const HostOffset block = block_of_locked(cluster);
  if (block.bytes == 0) {
    const uint64_t block_end =
        align_down(cluster, geometry_.refblock_entries()) +
        geometry_.refblock_entries();
    *free_until = *scanned_to = std::min(limit, block_end);
    return Step::done();
  }
  const HostOffset slice_host = slice_of(block, cluster);
  const SliceRef slice = parts_.refblocks->try_get(slice_host);
  if (!slice) {
    return Step::slice_at(slice_host);
  }
  const uint64_t per_slice = entries_per_slice();
  const uint64_t slice_end = align_down(cluster, per_slice) + per_slice;
  MetadataReaderLock lock(&slice->mutex);
  const uint8_t* const bytes = slice->bytes();
  const auto in_use = [&](uint64_t c) {
    return load_refcount(bytes, geometry_.refcount_order, c % per_slice) != 0;
  };
  uint64_t at = cluster;
  while (at < std::min(limit, slice_end) && !in_use(at)) ++at;
  *free_until = at;
  // If the run ended at a cluster in use, go on to where it could begin again.
  if (at < std::min(limit, slice_end)) {
    while (at < slice_end && in_use(at)) ++at;
  }
  *scanned_to = at;
  return Step::done();
}

// ---- Changing refcounts ----------------------------------------------------

Allocator::Step Allocator::prepare_slices_locked(HostClusters clusters,
                                                 HeldSlices* slices) {
  for (uint64_t cluster = clusters.first; cluster < clusters.end();) {
    const HostOffset block = block_of_locked(cluster);
    if (block.bytes == 0) {
      return Step::block(cluster >> geometry_.refblock_entry_bits(),
                         clusters.end());
    }
    const HostOffset slice_host = slice_of(block, cluster);
    SliceRef slice = parts_.refblocks->try_get(slice_host);
    if (!slice) {
      return Step::slice_at(slice_host);
    }
    slices->push_back(std::move(slice));
    cluster = align_down(cluster, entries_per_slice()) + entries_per_slice();
  }
  return Step::done();
}

Allocator::Step Allocator::visit_refcounts_locked(
    HostClusters clusters, const HeldSlices& slices,
    absl::FunctionRef<Step(Slice* slice, HostClusters part)> visit) {
  uint64_t first = clusters.first;
  for (const SliceRef& slice : slices) {
    const uint64_t end =
        std::min(clusters.end(),
                 align_down(first, entries_per_slice()) + entries_per_slice());
    Step step = visit(slice.get(), {first, end - first});
    if (step.need != Step::Need::kNothing) return step;
    first = end;
  }
  return Step::done();
}

Allocator::Step Allocator::change_slice_locked(Slice* slice, HostClusters part,
                                               int delta) {
  const uint32_t order = geometry_.refcount_order;
  MetadataLock lock(&slice->mutex);
  for (uint64_t cluster = part.first; cluster < part.end(); ++cluster) {
    const uint64_t index = cluster % entries_per_slice();
    const uint64_t value = load_refcount(slice->bytes(), order, index);
    const uint64_t changed =
        value + static_cast<uint64_t>(static_cast<int64_t>(delta));
    const bool legal = delta > 0 ? value <= geometry_.max_refcount() -
                                                static_cast<uint64_t>(delta)
                                 : value >= static_cast<uint64_t>(-delta);
    if (!legal) {
      // Allocation raises zeroes only, so this is a drop too many: nothing
      // before it was changed, as a drop changes one cluster at a time.
      return Step::failed(absl::DataLossError(
          absl::StrCat("refcount of host cluster ", cluster, " is ", value,
                       " and cannot change by ", delta)));
    }
    const RefcountBytes bytes = refcount_bytes_of(order, index);
    store_refcount(slice->change(bytes.begin, bytes.end), order, index,
                   changed);
    if (changed == 0) {
      next_free_ = std::min(next_free_, cluster);
      stop_packing_into_locked(cluster);
    }
  }
  return Step::done();
}

Allocator::Step Allocator::change_refcounts_locked(HostClusters clusters,
                                                   int delta) {
  HeldSlices slices;
  Step step = prepare_slices_locked(clusters, &slices);
  if (step.need != Step::Need::kNothing) return step;
  return visit_refcounts_locked(clusters, slices,
                                [this, delta](Slice* slice, HostClusters part)
                                    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                                      return change_slice_locked(slice, part,
                                                                 delta);
                                    });
}

Allocator::Step Allocator::check_may_add(Slice* slice,
                                         HostClusters part) const {
  MetadataReaderLock lock(&slice->mutex);
  for (uint64_t cluster = part.first; cluster < part.end(); ++cluster) {
    const uint64_t value =
        load_refcount(slice->bytes(), geometry_.refcount_order,
                      cluster % entries_per_slice());
    if (value == 0) {
      return Step::failed(absl::DataLossError(absl::StrCat(
          "host cluster ", cluster, " is in use but has refcount 0")));
    }
    if (value == geometry_.max_refcount()) {
      return Step::failed(absl::ResourceExhaustedError(
          absl::StrCat("the refcount of host cluster ", cluster, " is ", value,
                       ", which is all that ", geometry_.refcount_bits(),
                       "-bit refcounts can say")));
    }
  }
  return Step::done();
}

Allocator::Step Allocator::add_references_locked(HostClusters clusters) {
  HeldSlices slices;
  Step step = prepare_slices_locked(clusters, &slices);
  if (step.need != Step::Need::kNothing) return step;
  // Looked at as a whole before any is changed.
  step = visit_refcounts_locked(clusters, slices,
                                [this](Slice* slice, HostClusters part) {
                                  return check_may_add(slice, part);
                                });
  return step.need == Step::Need::kNothing
             ? change_refcounts_locked(clusters, +1)
             : step;
}

absl::StatusOr<Allocator::Step> Allocator::with_slices(
    uint64_t run_clusters, absl::FunctionRef<Step()> attempt) {
  HeldSlices held;
  while (true) {
    Step step = attempt();
    if (step.need != Step::Need::kSlice) return step;
    absl::Status status = load_slice(step.slice, &held, run_clusters);
    if (!status.ok()) return status;
  }
}

absl::Status Allocator::add_references(HostClusters clusters) {
  const absl::StatusOr<Step> step = with_slices(clusters.count, [&] {
    MetadataLock lock(&mutex_);
    return add_references_locked(clusters);
  });
  if (!step.ok()) return step.status();
  if (step->need == Step::Need::kBlock) return missing_block_error(clusters);
  return step->status;
}

absl::Status Allocator::change_refcounts(HostClusters clusters, int delta) {
  const absl::StatusOr<Step> step = with_slices(clusters.count, [&] {
    MetadataLock lock(&mutex_);
    return change_refcounts_locked(clusters, delta);
  });
  if (!step.ok()) return step.status();
  if (step->need == Step::Need::kNothing) return absl::OkStatus();
  const absl::Status damage = step->need == Step::Need::kBlock
                                  ? missing_block_error(clusters)
                                  : step->status;
  return parts_.corruption->report(damage.message());
}

absl::StatusOr<uint64_t> Allocator::refcount(uint64_t cluster) {
  HostOffset block;
  {
    MetadataLock lock(&mutex_);
    block = block_of_locked(cluster);
  }
  if (block.bytes == 0) return 0;
  absl::StatusOr<SliceRef> slice =
      parts_.refblocks->get(slice_of(block, cluster));
  if (!slice.ok()) return slice.status();
  MetadataReaderLock lock(&(*slice)->mutex);
  return load_refcount((*slice)->bytes(), geometry_.refcount_order,
                       cluster % entries_per_slice());
}

// ---- Freeing ---------------------------------------------------------------

void Allocator::free_unpublished(HostClusters clusters) {
  // One at a time, as a drop must be; an error leaves a leak, which is all that
  // an error may leave.
  for (uint64_t i = 0; i < clusters.count; ++i) {
    if (!change_refcounts({clusters.first + i, 1}, -1).ok()) return;
  }
}

absl::StatusOr<bool> Allocator::recover_pending() {
  const uint64_t before = parts_.pending->count_to_come();
  if (before == 0) return false;
  absl::Status status = parts_.run_flush_round();
  if (!status.ok()) return status;
  return parts_.pending->count_to_come() < before;
}

// An entry of a damaged image may have named metadata as guest data.
absl::Status Allocator::check_hole(HostClusters clusters) const {
  const auto metadata =
      parts_.extents->find_overlap({geometry_.cluster_offset(clusters.first),
                                    geometry_.cluster_offset(clusters.count)});
  if (!metadata.has_value()) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "freeing guest data at host offset ",
      geometry_.cluster_offset(clusters.first), ", ",
      geometry_.cluster_offset(clusters.count),
      " bytes, would free the image's ", metadata_kind_name(*metadata)));
}

absl::Status Allocator::reclaim() {
  absl::Status status = reclaim_ready();
  parts_.pending->end_reclaim();
  return status;
}

// True if `references` are all that `cluster` has; none is added then.
absl::StatusOr<bool> Allocator::are_last_references(uint64_t cluster,
                                                    int references) {
  const auto expected = static_cast<uint64_t>(references);
  absl::StatusOr<uint64_t> count = refcount(cluster);
  if (!count.ok()) return count.status();
  if (*count != expected) return false;
  // A hole is about to be punched: no compressed data may arrive there, and
  // what arrived before this is in the count by now.
  stop_packing_into(cluster);
  count = refcount(cluster);
  if (!count.ok()) return count.status();
  return *count == expected;
}

absl::Status Allocator::reclaim_ready() {
  // What is wrong there may be the refcounts; a leak is no harm.
  if (parts_.corruption->is_set()) return absl::OkStatus();
  const std::vector<uint64_t> ready =
      parts_.pending->take_reclaimable(*parts_.in_flight);
  // (cluster, references given up), of those whose last reference goes: holes.
  std::vector<std::pair<uint64_t, int>> drops;
  std::vector<HostClusters> holes;
  for (size_t i = 0; i < ready.size();) {
    const uint64_t cluster = ready[i];
    int references = 0;
    for (; i < ready.size() && ready[i] == cluster; ++i) ++references;
    const absl::StatusOr<bool> are_last =
        are_last_references(cluster, references);
    if (!are_last.ok()) {
      parts_.pending->put_back_durable(ready);
      return are_last.status();
    }
    drops.emplace_back(cluster, references);
    // Of compressed data that leave a cluster to its other users, too.
    parts_.discard_copies({cluster, 1});
    if (!*are_last) continue;
    if (!holes.empty() && holes.back().end() == cluster) {
      ++holes.back().count;
    } else {
      holes.push_back({cluster, 1});
    }
  }
  for (const HostClusters& hole : holes) {
    if (absl::Status legal = check_hole(hole); !legal.ok())
      return parts_.corruption->report(legal.message());
  }
  for (const HostClusters& hole : holes) {
    if (!options_.punch_holes) continue;
    // Advice: a file that keeps the bytes is none the worse.
    parts_.file
        ->discard(Purpose::kClusterFree, {geometry_.cluster_offset(hole.first),
                                          geometry_.cluster_offset(hole.count)})
        .IgnoreError();
  }
  for (size_t i = 0; i < drops.size(); ++i) {
    absl::Status status =
        change_refcounts({drops[i].first, 1}, -drops[i].second);
    if (status.ok()) continue;
    if (!absl::IsDataLoss(status)) {
      std::vector<uint64_t> rest;
      for (size_t j = i; j < drops.size(); ++j) {
        rest.insert(rest.end(), static_cast<size_t>(drops[j].second),
                    drops[j].first);
      }
      parts_.pending->put_back_durable(rest);
    }
    return status;
  }
  return absl::OkStatus();
}

// ---- For the flush round ---------------------------------------------------

std::vector<Allocator::TableEntry> Allocator::take_dirty_table() {
  MetadataLock lock(&mutex_);
  std::vector<TableEntry> entries;
  for (uint64_t index : dirty_table_) {
    entries.push_back(
        {HostOffset{table_host_.bytes + index * kRefcountTableEntryBytes},
         index, table_[index]});
  }
  dirty_table_.clear();
  return entries;
}

void Allocator::restore(const std::vector<TableEntry>& entries) {
  MetadataLock lock(&mutex_);
  for (const TableEntry& entry : entries) dirty_table_.insert(entry.index);
}

}  // namespace spindle::qcow2

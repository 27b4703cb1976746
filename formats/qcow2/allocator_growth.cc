// New refcount blocks, and moving the refcount table when it is full.
//
// qcow2 specification, "Refcounts".  One thread at a time changes the
// structure; others allocate from what is there meanwhile, and wait only if
// they need the new block too.
#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {

// A table that is large enough, and the blocks that describe it, in an area of
// their own behind everything that is in use.
struct Allocator::GrowthPlan {
  HostClusters area;  // new blocks, then the new table
  uint64_t new_block_count = 0;
  HostClusters table;
  std::vector<uint64_t> entries;  // the new table's content
  // First refcount block that describes the area.
  uint64_t first_block_index = 0;
};

void Allocator::begin_structure_change() {
  MetadataLock lock(&mutex_);
  while (structure_changing_) mutex_.wait(&structure_changed_);
  structure_changing_ = true;
}

void Allocator::end_structure_change() {
  MetadataLock lock(&mutex_);
  structure_changing_ = false;
  reserved_.clear();
  structure_changed_.SignalAll();
}

absl::Status Allocator::add_block(uint64_t block_index, uint64_t search_from) {
  begin_structure_change();
  const absl::Status status = add_block_alone(block_index, search_from);
  end_structure_change();
  return status;
}

absl::Status Allocator::add_block_alone(uint64_t block_index,
                                        uint64_t search_from) {
  {
    MetadataLock lock(&mutex_);
    // Somebody else may have added it while this thread waited.
    if (block_index < table_.size() && table_[block_index] != 0)
      return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> cluster = reserve_cluster(search_from);
  if (!cluster.ok()) return cluster.status();

  // Who counts the new block?  Itself, a block that exists, or one that must be
  // added first (which then lies in its own range, so this ends).
  const uint64_t described_by = *cluster >> geometry_.refblock_entry_bits();
  bool exists = described_by == block_index;
  bool table_is_full = false;
  {
    MetadataLock lock(&mutex_);
    exists |= described_by < table_.size() && table_[described_by] != 0;
    table_is_full = std::max(block_index, described_by) >= table_.size();
  }
  if (table_is_full) return grow_table(block_index, *cluster);
  if (!exists) {
    absl::Status status = add_block_alone(described_by, *cluster + 1);
    if (!status.ok()) return status;
    MetadataLock lock(&mutex_);
    // The table had to grow for it: the caller tries again.
    if (table_[described_by] == 0) return absl::OkStatus();
  }
  absl::Status status = zero_clusters({*cluster, 1}, Purpose::kRefblockAlloc);
  if (!status.ok()) return status;
  return hook_up_block(block_index, *cluster);
}

absl::StatusOr<uint64_t> Allocator::reserve_cluster(uint64_t search_from) {
  HeldSlices held;
  while (true) {
    Step step;
    uint64_t first = 0;
    {
      MetadataLock lock(&mutex_);
      // The search for a block must not move the hint of the data behind it.
      const uint64_t hint = next_free_;
      step = find_run_locked(search_from, 1, &first);
      next_free_ = hint;
      if (step.need == Step::Need::kNothing) {
        absl::Status legal = check_run_locked({first, 1});
        if (legal.ok()) {
          reserved_.push_back({first, 1});
          return first;
        }
        step = Step::failed(std::move(legal));
      }
    }
    if (step.need != Step::Need::kSlice) {
      return absl::IsDataLoss(step.status)
                 ? parts_.corruption->report(step.status.message())
                 : step.status;
    }
    absl::Status status = load_slice(step.slice, &held);
    if (!status.ok()) return status;
  }
}

absl::Status Allocator::zero_clusters(HostClusters clusters, Purpose purpose) {
  // Beyond everything that was ever handed out the file has no bytes yet.
  if (clusters.first >= high_water_.load(std::memory_order_acquire))
    return absl::OkStatus();
  return parts_.file->write_zeroes(purpose,
                                   {geometry_.cluster_offset(clusters.first),
                                    geometry_.cluster_offset(clusters.count)},
                                   {});
}

absl::Status Allocator::hook_up_block(uint64_t block_index, uint64_t cluster) {
  const HostOffset block{geometry_.cluster_offset(cluster)};
  // The slice that will hold the block's own refcount, if it describes itself.
  HeldSlices held;
  const bool describes_itself =
      cluster >> geometry_.refblock_entry_bits() == block_index;
  if (describes_itself) {
    absl::Status status = load_slice(slice_of(block, cluster), &held);
    if (!status.ok()) return status;
  }
  absl::Status status = parts_.extents->add(
      MetadataKind::kRefcountBlock, {block.bytes, geometry_.cluster_bytes()});
  if (!status.ok()) return parts_.corruption->report(status.message());
  while (true) {
    Step step;
    {
      MetadataLock lock(&mutex_);
      table_[block_index] = block.bytes;
      step = change_refcounts_locked({cluster, 1}, +1);
      if (step.need == Step::Need::kNothing) {
        dirty_table_.insert(block_index);
        note_use_locked({cluster, 1});
        note_published({cluster, 1});
        return absl::OkStatus();
      }
      // Not half way: others see the block when it is counted.
      table_[block_index] = 0;
    }
    status = step.need == Step::Need::kSlice ? load_slice(step.slice, &held)
                                             : step.status;
    if (!status.ok()) {
      parts_.extents->remove({block.bytes, geometry_.cluster_bytes()});
      return status;
    }
  }
}

// ---- Moving the table ------------------------------------------------------

absl::StatusOr<Allocator::GrowthPlan> Allocator::plan_growth(
    uint64_t block_index, uint64_t cluster) {
  const uint64_t per_block = geometry_.refblock_entries();
  const uint64_t entries_per_cluster =
      geometry_.cluster_bytes() / kRefcountTableEntryBytes;

  MetadataLock lock(&mutex_);
  // Behind everything that is in use or about to be, at the start of a block's
  // range, so that the area describes itself.
  const uint64_t used = std::max({high_water_.load(std::memory_order_relaxed),
                                  block_index * per_block + 1, cluster + 1});
  GrowthPlan plan;
  plan.first_block_index = divide_round_up(used, per_block);
  const uint64_t area_start = plan.first_block_index * per_block;

  // Blocks and table describe themselves too: iterate until they fit.
  uint64_t blocks = plan.first_block_index;
  uint64_t table_clusters = 0;
  while (true) {
    // Half as much again, so that growth stays rare.
    table_clusters = divide_round_up(blocks + divide_round_up(blocks, 2),
                                     entries_per_cluster);
    const uint64_t needed = divide_round_up(
        area_start + (blocks - plan.first_block_index) + table_clusters,
        per_block);
    if (needed <= blocks && blocks > plan.first_block_index) break;
    blocks = std::max(needed, blocks + 1);
  }
  if (geometry_.cluster_offset(table_clusters) > kMaxRefcountTableBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the refcount table would need ",
        geometry_.cluster_offset(table_clusters),
        " bytes, more than the limit of ", kMaxRefcountTableBytes));
  }
  plan.new_block_count = blocks - plan.first_block_index;
  plan.table = {area_start + plan.new_block_count, table_clusters};
  plan.area = {area_start, plan.new_block_count + table_clusters};
  plan.entries.assign(table_clusters * entries_per_cluster, 0);
  std::copy(table_.begin(), table_.end(), plan.entries.begin());
  for (uint64_t i = 0; i < plan.new_block_count; ++i) {
    plan.entries[plan.first_block_index + i] =
        geometry_.cluster_offset(area_start + i);
  }
  reserved_.push_back(plan.area);
  // If the growth fails its bytes may remain there.  No cluster of the area can
  // be handed out before another growth succeeds, whose area reaches as far.
  return plan;
}

absl::Status Allocator::write_growth(const GrowthPlan& plan) {
  const uint64_t cluster_bytes = geometry_.cluster_bytes();
  const uint64_t per_block = geometry_.refblock_entries();
  std::vector<uint8_t> block(cluster_bytes);
  for (uint64_t i = 0; i < plan.new_block_count; ++i) {
    std::fill(block.begin(), block.end(), 0);
    const uint64_t first = (plan.first_block_index + i) * per_block;
    for (uint64_t c = std::max(first, plan.area.first);
         c < std::min(first + per_block, plan.area.end()); ++c) {
      store_refcount(block.data(), geometry_.refcount_order, c - first, 1);
    }
    absl::Status status =
        parts_.file->write(Purpose::kRefblockAlloc, block.data(), block.size(),
                           geometry_.cluster_offset(plan.area.first + i));
    if (!status.ok()) return status;
  }
  std::vector<uint8_t> table(plan.entries.size() * kRefcountTableEntryBytes);
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    store_big64(&table[i * kRefcountTableEntryBytes], plan.entries[i]);
  }
  absl::Status status =
      parts_.file->write(Purpose::kReftableGrow, table.data(), table.size(),
                         geometry_.cluster_offset(plan.table.first));
  if (!status.ok()) return status;
  status = parts_.file->flush();
  if (!status.ok()) return status;

  return switch_table(plan.table);
}

absl::Status Allocator::switch_table(HostClusters table) {
  HostClusters old_table;
  {
    MetadataLock lock(&mutex_);
    old_table = {geometry_.cluster_index(table_host_.bytes), table_clusters_};
  }
  absl::Status status = write_table_fields(table);
  if (status.ok()) return status;
  // Which of the two the disk names now is unknown: make it the old one again,
  // or use neither.
  if (!write_table_fields(old_table).ok()) {
    parts_.corruption
        ->report(absl::StrCat(
            "the header could not be written while the refcount table moved: ",
            status.message()))
        .IgnoreError();
  }
  return status;
}

// One write within the header's first sector (rule 2), durable.
absl::Status Allocator::write_table_fields(HostClusters table) {
  std::array<uint8_t, 12> fields;
  store_big64(fields.data(), geometry_.cluster_offset(table.first));
  store_big32(&fields[8], static_cast<uint32_t>(table.count));
  static_assert(kRefcountTableClustersOffset == kRefcountTableOffsetOffset + 8);
  absl::Status status =
      parts_.file->write(Purpose::kHeaderUpdate, fields.data(), fields.size(),
                         kRefcountTableOffsetOffset);
  if (!status.ok()) return status;
  return parts_.file->flush();
}

absl::Status Allocator::grow_table(uint64_t block_index, uint64_t cluster) {
  // The disk's table becomes a copy of the one in memory, so what that names
  // must be on the disk first.
  absl::Status status = parts_.run_flush_round();
  if (!status.ok()) return status;
  absl::StatusOr<GrowthPlan> plan = plan_growth(block_index, cluster);
  if (!plan.ok()) return plan.status();
  status = write_growth(*plan);
  if (!status.ok()) return status;

  HostClusters old_table;
  {
    MetadataLock lock(&mutex_);
    old_table = {geometry_.cluster_index(table_host_.bytes), table_clusters_};
    table_ = std::move(plan->entries);
    table_host_ = HostOffset{geometry_.cluster_offset(plan->table.first)};
    table_clusters_ = plan->table.count;
    note_use_locked(plan->area);
    note_published(plan->area);
  }
  const auto bytes_of = [&](HostClusters run) {
    return ByteRange{geometry_.cluster_offset(run.first),
                     geometry_.cluster_offset(run.count)};
  };
  parts_.extents->remove(bytes_of(old_table));
  status =
      parts_.extents->add(MetadataKind::kRefcountTable, bytes_of(plan->table));
  for (uint64_t i = 0; status.ok() && i < plan->new_block_count; ++i) {
    status = parts_.extents->add(MetadataKind::kRefcountBlock,
                                 bytes_of({plan->area.first + i, 1}));
  }
  if (!status.ok()) return parts_.corruption->report(status.message());
  parts_.pending->add_durably_dropped(old_table);
  // The block that started this is added by the caller's next attempt.
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

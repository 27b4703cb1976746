// Giving back what a smaller image does not need: refcount blocks that count
// nothing, and the end of the file.
//
// qcow2 specification, "Refcounts".  Only while nothing else uses the image
// (the gate is closed) and nothing is dirty or pending.
#include <algorithm>
#include <utility>

#include "engine/checked_math.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {

absl::StatusOr<Allocator::BlockUse> Allocator::use_of_block(uint64_t index) {
  HostOffset block;
  {
    MetadataLock lock(&mutex_);
    block = HostOffset{table_[index]};
  }
  BlockUse use;
  if (block.bytes == 0) return use;
  use.block = geometry_.cluster_index(block.bytes);
  const uint64_t first = index << geometry_.refblock_entry_bits();
  const uint64_t per_slice = entries_per_slice();
  for (uint64_t i = 0; i < geometry_.refblock_entries(); i += per_slice) {
    absl::StatusOr<SliceRef> slice =
        parts_.refblocks->get(slice_of(block, first + i));
    if (!slice.ok()) return slice.status();
    MetadataReaderLock lock(&(*slice)->mutex);
    for (uint64_t j = 0; j < per_slice; ++j) {
      if (load_refcount((*slice)->bytes(), geometry_.refcount_order, j) == 0)
        continue;
      use.end = first + i + j + 1;
      use.counts_others |= first + i + j != use.block;
    }
  }
  return use;
}

absl::Status Allocator::drop_unused_blocks() {
  uint64_t count = 0;
  {
    MetadataLock lock(&mutex_);
    count = table_.size();
  }
  std::vector<std::pair<uint64_t, uint64_t>> unused;  // index, cluster
  for (uint64_t i = 0; i < count; ++i) {
    const absl::StatusOr<BlockUse> use = use_of_block(i);
    if (!use.ok()) return use.status();
    if (use->block != 0 && !use->counts_others)
      unused.emplace_back(i, use->block);
  }
  if (unused.empty()) return absl::OkStatus();
  // First the table, durably: until then the blocks are counted.
  {
    MetadataLock lock(&mutex_);
    for (const auto& [index, cluster] : unused) {
      table_[index] = 0;
      dirty_table_.insert(index);
    }
  }
  absl::Status status = parts_.run_flush_round();
  if (!status.ok()) {
    // What the disk names now is unknown; it shall name them again.
    MetadataLock lock(&mutex_);
    for (const auto& [index, cluster] : unused) {
      table_[index] = geometry_.cluster_offset(cluster);
      dirty_table_.insert(index);
    }
    return status;
  }
  for (const auto& [index, cluster] : unused) {
    const ByteRange range{geometry_.cluster_offset(cluster),
                          geometry_.cluster_bytes()};
    parts_.extents->remove(range);
    parts_.refblocks->discard(HostOffset{range.offset}, range.length);
    // One that counted itself is gone with its count.
    if (cluster >> geometry_.refblock_entry_bits() != index)
      parts_.pending->add_durably_dropped({cluster, 1});
    MetadataLock lock(&mutex_);
    next_free_ = std::min(next_free_, cluster);
  }
  return parts_.run_flush_round();
}

absl::StatusOr<uint64_t> Allocator::find_used_end() {
  uint64_t count = 0;
  {
    MetadataLock lock(&mutex_);
    count = table_.size();
  }
  for (uint64_t i = count; i-- > 0;) {
    const absl::StatusOr<BlockUse> use = use_of_block(i);
    if (!use.ok()) return use.status();
    if (use->end != 0) return use->end;
  }
  return 0;
}

absl::Status Allocator::trim_file() {
  const absl::StatusOr<uint64_t> end = find_used_end();
  if (!end.ok()) return end.status();
  if (geometry_.cluster_offset(*end) >= parts_.file->length_bytes())
    return absl::OkStatus();
  absl::Status status = parts_.file->set_length(geometry_.cluster_offset(*end),
                                                SetLengthMode::kExact);
  // Nothing of what was there may come back when the file grows again.
  if (status.ok()) status = parts_.file->flush();
  if (!status.ok()) return status;
  MetadataLock lock(&mutex_);
  high_water_.store(*end, std::memory_order_release);
  allocated_end_.store(0, std::memory_order_release);
  published_end_.store(0, std::memory_order_release);
  return status;
}

}  // namespace spindle::qcow2

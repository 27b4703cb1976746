#include "formats/qcow2/stored_refcounts.h"

#include <algorithm>

#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {

absl::Status StoredRefcounts::load() {
  const Header& header = context_->header;
  // At most kMaxRefcountTableBytes.
  std::vector<uint8_t> bytes(header.refcount_table_bytes());
  absl::Status status =
      context_->file->read(Purpose::kReftableLoad, bytes.data(), bytes.size(),
                           header.refcount_table_offset);
  if (!status.ok()) return status;
  table_.resize(header.refcount_table_entry_count());
  for (size_t i = 0; i < table_.size(); ++i)
    table_[i] = load_big64(&bytes[i * kRefcountTableEntryBytes]);
  unreadable_.assign(table_.size(), false);
  said_unaligned_ = false;
  keeper_ = nullptr;
  kept_clusters_ = 0;
  return absl::OkStatus();
}

uint64_t StoredRefcounts::block_offset(uint64_t index) const {
  return index < table_.size() ? table_[index] & kRefcountTableOffsetMask : 0;
}

StoredRefcounts::BlockState StoredRefcounts::read_block(
    uint64_t index, std::vector<uint8_t>* block) const {
  const uint64_t offset = block_offset(index);
  const uint64_t cluster_bytes = context_->geometry.cluster_bytes();
  if (offset == 0) return BlockState::kNone;
  if (!is_aligned(offset, cluster_bytes)) return BlockState::kUnaligned;
  if (offset > kMaxSizeBytes - cluster_bytes) return BlockState::kUnreadable;
  if (offset >= context_->file->length_bytes()) return BlockState::kNone;
  block->resize(cluster_bytes);
  return context_->file
                 ->read(Purpose::kRefblockLoad, block->data(), block->size(),
                        offset)
                 .ok()
             ? BlockState::kRead
             : BlockState::kUnreadable;
}

bool StoredRefcounts::compare_one(uint64_t cluster, uint64_t references,
                                  Fix fix, std::vector<uint8_t>* block,
                                  Outcome* outcome, Findings* findings) {
  const Geometry& geometry = context_->geometry;
  const uint64_t index = cluster & (geometry.refblock_entries() - 1);
  const uint64_t refcount =
      block == nullptr
          ? 0
          : load_refcount(block->data(), geometry.refcount_order, index);
  if (refcount > 0 || references > 0) outcome->highest_cluster = cluster;
  if (refcount == references) return false;
  if (refcount == 0) outcome->unusable = true;
  const bool leaked = refcount > references;
  const bool repairing = refcount != 0 && (leaked ? fix.leaks : fix.errors);
  findings->note({leaked ? Finding::Kind::kRefcountTooHigh
                         : Finding::Kind::kRefcountTooLow,
                  repairing, cluster, refcount, references});
  CheckResult& counts = findings->counts;
  if (!repairing) {
    ++(leaked ? counts.leaks : counts.corruptions);
    return false;
  }
  ++(leaked ? counts.leaks_fixed : counts.corruptions_fixed);
  store_refcount(block->data(), geometry.refcount_order, index, references);
  return true;
}

absl::Status StoredRefcounts::compare(const ReferenceCounter& counter,
                                      uint64_t clusters, Fix fix,
                                      Outcome* outcome) {
  const uint64_t per_block = context_->geometry.refblock_entries();
  std::vector<uint8_t> block;
  for (uint64_t first = 0; first < clusters; first += per_block) {
    absl::Status status = context_->interrupted();
    if (!status.ok()) return status;
    const uint64_t index = first / per_block;
    const uint64_t end = std::min(first + per_block, clusters);
    Findings findings(context_->wants_lines());
    const BlockState state = read_block(index, &block);
    if (state == BlockState::kUnaligned || state == BlockState::kUnreadable) {
      if (state == BlockState::kUnaligned && !said_unaligned_) {
        said_unaligned_ = true;
        findings.note({Finding::Kind::kBlockOffsetUnaligned, false,
                       block_offset(index), index});
      }
      unreadable_[index] = true;
      for (uint64_t i = first; i < end; ++i) {
        findings.check_error({Finding::Kind::kNoRefcount, false, i});
        if (findings.are_many()) context_->say(&findings);
      }
      context_->say(&findings);
      continue;
    }
    bool changed = false;
    for (uint64_t i = first; i < end; ++i) {
      changed |= compare_one(i, counter.get(i), fix,
                             state == BlockState::kRead ? &block : nullptr,
                             outcome, &findings);
      if (findings.are_many()) context_->say(&findings);
    }
    if (changed) {
      status = context_->file->write(Purpose::kRefblockUpdate, block.data(),
                                     block.size(), block_offset(index));
    }
    context_->say(&findings);
    if (!status.ok()) return status;
  }
  return fix.any() ? context_->file->flush() : absl::OkStatus();
}

absl::Status StoredRefcounts::keep(ReferenceCounter* keeper,
                                   uint64_t clusters) {
  const Geometry& geometry = context_->geometry;
  const uint64_t per_block = geometry.refblock_entries();
  std::vector<uint8_t> block;
  keeper->clear();
  for (uint64_t first = 0; first < clusters; first += per_block) {
    absl::Status status = context_->interrupted();
    if (!status.ok()) return status;
    const uint64_t index = first / per_block;
    const uint64_t end = std::min(first + per_block, clusters);
    const BlockState state = read_block(index, &block);
    if (state == BlockState::kUnreadable) unreadable_[index] = true;
    if (state != BlockState::kRead) continue;
    for (uint64_t i = first; i < end; ++i) {
      const uint64_t refcount =
          load_refcount(block.data(), geometry.refcount_order, i - first);
      if (refcount != 0) keeper->set(i, refcount);
    }
  }
  keeper_ = keeper;
  kept_clusters_ = clusters;
  return absl::OkStatus();
}

bool StoredRefcounts::is_unreadable(uint64_t index) const {
  const uint64_t offset = block_offset(index);
  return !is_aligned(offset, context_->geometry.cluster_bytes()) ||
         offset > kMaxSizeBytes - context_->geometry.cluster_bytes() ||
         (index < unreadable_.size() && unreadable_[index]);
}

std::optional<uint64_t> StoredRefcounts::get(uint64_t cluster) const {
  const Geometry& geometry = context_->geometry;
  const uint64_t index = cluster / geometry.refblock_entries();
  const uint64_t offset = block_offset(index);
  if (offset == 0) return 0;
  if (is_unreadable(index)) return std::nullopt;
  if (cluster < kept_clusters_) return keeper_->get(cluster);
  // Rare: an entry that names a cluster beyond the end of the file.
  const uint64_t in_block = cluster & (geometry.refblock_entries() - 1);
  const RefcountBytes at = refcount_bytes_of(geometry.refcount_order, in_block);
  uint8_t bytes[8] = {};
  if (!context_->file
           ->read(Purpose::kRefblockLoad, bytes, at.end - at.begin,
                  offset + at.begin)
           .ok()) {
    return std::nullopt;
  }
  // The same entry, counted from the byte that was read.
  const uint32_t order = geometry.refcount_order;
  return load_refcount(bytes, order,
                       order < 3 ? in_block & ((8u >> order) - 1) : 0);
}

// ---- Free clusters ------------------------------------------------------

std::optional<uint64_t> StoredRefcounts::find_free(uint64_t count) const {
  const uint64_t per_block = context_->geometry.refblock_entries();
  uint64_t found = 0;
  for (uint64_t index = 0; index < table_.size(); ++index) {
    const uint64_t offset = block_offset(index);
    if (offset == 0 || offset >= context_->file->length_bytes() ||
        is_unreadable(index)) {
      found = 0;
      continue;
    }
    for (uint64_t i = 0; i < per_block; ++i) {
      const uint64_t cluster = index * per_block + i;
      const std::optional<uint64_t> refcount = get(cluster);
      found = refcount == uint64_t{0} ? found + 1 : 0;
      if (found == count) return cluster + 1 - count;
    }
  }
  return std::nullopt;
}

absl::Status StoredRefcounts::take(uint64_t first, uint64_t count) {
  const uint64_t per_block = context_->geometry.refblock_entries();
  const uint64_t end = first + count;
  std::vector<uint8_t> block;
  for (uint64_t next = first; next < end;) {
    const uint64_t index = next / per_block;
    if (read_block(index, &block) != BlockState::kRead)
      return absl::DataLossError("qcow2: a refcount block cannot be read");
    for (; next < end && next / per_block == index; ++next) {
      store_refcount(block.data(), context_->geometry.refcount_order,
                     next % per_block, 1);
    }
    absl::Status status =
        context_->file->write(Purpose::kRefblockUpdate, block.data(),
                              block.size(), block_offset(index));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

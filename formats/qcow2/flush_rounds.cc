#include "formats/qcow2/flush_rounds.h"

#include <array>

#include "engine/byte_order.h"
#include "formats/cluster/mapping_writes.h"

namespace spindle::qcow2 {
namespace {

// Rounds that close() runs at most; each gives up what the one before freed.
constexpr int kMaxSettleRounds = 4;

}  // namespace

absl::Status FlushRounds::flush() {
  return sharing_.flush([this] { return run_round(); });
}

absl::Status FlushRounds::write_back_if_crowded() {
  if (!parts_.l2_tables->wants_write_back() &&
      !parts_.refblocks->wants_write_back()) {
    return absl::OkStatus();
  }
  const bool is_overfull =
      parts_.l2_tables->is_overfull() || parts_.refblocks->is_overfull();
  return sharing_.write_back(is_overfull, [this] { return run_round(); });
}

absl::Status FlushRounds::settle() {
  absl::Status status = flush();
  for (int i = 0; i < kMaxSettleRounds && status.ok() && is_unsettled(); ++i)
    status = flush();
  return status;
}

bool FlushRounds::is_unsettled() const {
  return parts_.pending->count() != 0 || parts_.l2_tables->has_dirty() ||
         parts_.refblocks->has_dirty();
}

absl::Status FlushRounds::run_round() {
  Snapshot snapshot = take_snapshot();
  if (snapshot.is_clean() && snapshot.drops.empty()) {
    absl::Status status = sync_external_data();
    if (status.ok()) status = parts_.file->flush();
    return status.ok() ? give_up(snapshot) : status;
  }
  absl::Status status = sync_external_data();
  if (status.ok()) status = write_out(snapshot);
  if (!status.ok()) {
    put_back(&snapshot);
    return status;
  }
  parts_.pending->add_durable(snapshot.drops);
  return give_up(snapshot);
}

absl::Status FlushRounds::give_up(const Snapshot& snapshot) {
  absl::Status status = parts_.allocator->reclaim();
  if (parts_.kept_discards != nullptr) {
    parts_.kept_discards->end_round(snapshot.last_kept_discard);
    parts_.kept_discards->punch();
  }
  return status;
}

absl::Status FlushRounds::sync_external_data() {
  return parts_.external_data == nullptr ? absl::OkStatus()
                                         : parts_.external_data->flush();
}

FlushRounds::Snapshot FlushRounds::take_snapshot() {
  // The order matters.  Drops first: what they dropped is in the slices that
  // follow.  Mappings before refcounts: a refcount is raised before the cluster
  // is mapped, so the refcounts that the snapshot's mappings rely on are in it.
  // The refcount table before the blocks: likewise for a new block's own count.
  Snapshot snapshot;
  snapshot.drops = parts_.pending->take_dropped();
  if (parts_.kept_discards != nullptr)
    snapshot.last_kept_discard = parts_.kept_discards->last();
  parts_.l2_tables->take_dirty(&snapshot.l2);
  snapshot.l1 = parts_.l1->take_dirty();
  snapshot.table = parts_.allocator->take_dirty_table();
  parts_.refblocks->take_dirty(&snapshot.refblocks);
  return snapshot;
}

void FlushRounds::put_back(Snapshot* snapshot) {
  parts_.refblocks->restore(&snapshot->refblocks);
  parts_.allocator->restore(snapshot->table);
  parts_.l1->restore(snapshot->l1);
  parts_.l2_tables->restore(&snapshot->l2);
  parts_.pending->put_back(snapshot->drops);
}

absl::Status FlushRounds::write_out(const Snapshot& snapshot) {
  // Tables that were never written lie beyond the end of the file until now.
  const uint64_t end = parts_.allocator->published_end_bytes();
  if (parts_.file->length_bytes() < end) {
    absl::Status status =
        parts_.file->set_length(end, SetLengthMode::kGrowOnly);
    if (!status.ok()) return status;
  }
  absl::Status status = write_refcounts(snapshot);
  if (status.ok() && maps_new_clusters(snapshot.l2, snapshot.l1))
    status = parts_.file->flush();
  if (status.ok()) status = write_mappings(snapshot);
  return status.ok() ? parts_.file->flush() : status;
}

absl::Status FlushRounds::write_refcounts(const Snapshot& snapshot) {
  absl::Status status = write_table_pieces(
      parts_.file, Purpose::kRefblockUpdate, snapshot.refblocks);
  if (!status.ok() || snapshot.table.empty()) return status;
  // A block is durable, zeroed and counted, before the table names it.
  status = parts_.file->flush();
  for (const Allocator::TableEntry& entry : snapshot.table) {
    if (!status.ok()) return status;
    std::array<uint8_t, 8> bytes;
    store_big64(bytes.data(), entry.value);
    status = parts_.file->write(Purpose::kRefblockAllocHookup, bytes.data(),
                                bytes.size(), entry.where.bytes);
  }
  return status;
}

absl::Status FlushRounds::write_mappings(const Snapshot& snapshot) {
  absl::Status status =
      write_table_pieces(parts_.file, Purpose::kL2Update, snapshot.l2);
  return status.ok() ? write_l1_pieces(parts_.file, *parts_.l1, snapshot.l1)
                     : status;
}

}  // namespace spindle::qcow2

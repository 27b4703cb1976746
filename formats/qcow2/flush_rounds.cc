#include "formats/qcow2/flush_rounds.h"

#include <algorithm>
#include <array>
#include <utility>

#include "engine/byte_order.h"

namespace spindle::qcow2 {
namespace {

// Pieces that are written in one vectored transfer at most.
constexpr size_t kMaxPiecesPerWrite = 256;
// Rounds that close() runs at most; each gives up what the one before freed.
constexpr int kMaxSettleRounds = 4;

}  // namespace

bool FlushRounds::Snapshot::maps_new_clusters() const {
  return !l1.empty() ||
         std::any_of(l2.begin(), l2.end(), [](const DirtyPiece& piece) {
           return piece.has_new_mapping;
         });
}

absl::Status FlushRounds::flush() {
  std::shared_ptr<Round> mine;
  {
    MetadataLock lock(&mutex_);
    mine = next_;
    ++waiting_;
    while (!mine->done && running_) mutex_.wait(&round_ended_);
    --waiting_;
    if (mine->done) return mine->status;
    // Nobody runs: this caller runs the round for all who wait for it.
    running_ = true;
    next_ = std::make_shared<Round>();
  }
  absl::Status status = run_round();
  MetadataLock lock(&mutex_);
  running_ = false;
  mine->done = true;
  mine->status = status;
  round_ended_.SignalAll();
  return status;
}

absl::Status FlushRounds::write_back_if_crowded() {
  if (!parts_.l2_tables->wants_write_back() &&
      !parts_.refblocks->wants_write_back()) {
    return absl::OkStatus();
  }
  if (writing_back_.exchange(true, std::memory_order_acq_rel)) {
    // Somebody is at it.  Those who make more dirty slices meanwhile wait only
    // if they outrun it.
    const bool outrun =
        parts_.l2_tables->is_overfull() || parts_.refblocks->is_overfull();
    return outrun ? flush() : absl::OkStatus();
  }
  absl::Status status = flush();
  writing_back_.store(false, std::memory_order_release);
  return status;
}

absl::Status FlushRounds::settle() {
  absl::Status status = flush();
  for (int i = 0; i < kMaxSettleRounds && status.ok() && is_unsettled(); ++i)
    status = flush();
  return status;
}

int FlushRounds::waiting_count() const {
  MetadataLock lock(&mutex_);
  return waiting_;
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
  if (status.ok() && snapshot.maps_new_clusters())
    status = parts_.file->flush();
  if (status.ok()) status = write_mappings(snapshot);
  return status.ok() ? parts_.file->flush() : status;
}

absl::Status FlushRounds::write_refcounts(const Snapshot& snapshot) {
  absl::Status status =
      write_pieces(Purpose::kRefblockUpdate, snapshot.refblocks);
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
  absl::Status status = write_pieces(Purpose::kL2Update, snapshot.l2);
  for (const L1Table::Piece& piece : snapshot.l1) {
    if (!status.ok()) return status;
    status =
        parts_.file->write(Purpose::kL1Update, piece.bytes.data(),
                           piece.bytes.size(), parts_.l1->host_of(piece).bytes);
  }
  return status;
}

absl::Status FlushRounds::write_pieces(Purpose purpose,
                                       const std::vector<DirtyPiece>& pieces) {
  std::vector<iovec> segments;
  for (size_t i = 0; i < pieces.size();) {
    // As many as follow each other in the file.
    segments.clear();
    const uint64_t begin = pieces[i].host.bytes;
    uint64_t end = begin;
    while (i < pieces.size() && pieces[i].host.bytes == end &&
           segments.size() < kMaxPiecesPerWrite) {
      const std::vector<uint8_t>& bytes = pieces[i].bytes;
      segments.push_back({const_cast<uint8_t*>(bytes.data()), bytes.size()});
      end += bytes.size();
      ++i;
    }
    absl::Status status =
        parts_.file->write(purpose, IoVector(segments), begin);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

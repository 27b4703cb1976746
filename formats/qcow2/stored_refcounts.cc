#include "formats/qcow2/stored_refcounts.h"

#include <algorithm>
#include <utility>

#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/run_pieces.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {
namespace {

// Whole bytes, whatever the width.
constexpr uint64_t kRefcountsPerPiece = uint64_t{16} << 10;
// Bounds what the findings of one batch can take.
constexpr uint64_t kRefcountsPerBatch = uint64_t{512} << 10;

}  // namespace

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

uint64_t StoredRefcounts::steps_for(uint64_t clusters) {
  return divide_round_up(clusters, kRefcountsPerPiece);
}

// ---- Pieces -----------------------------------------------------------------

absl::Status StoredRefcounts::for_each_piece(
    uint64_t clusters, absl::FunctionRef<void(Piece* piece)> visit,
    absl::FunctionRef<absl::Status(Piece* piece)> conclude) {
  const uint64_t per_block = context_->geometry.refblock_entries();
  const uint64_t per_piece = std::min(kRefcountsPerPiece, per_block);
  const uint64_t per_batch = kRefcountsPerBatch / per_piece;
  std::vector<Piece> batch;
  for (uint64_t first = 0; first < clusters;) {
    absl::Status status = context_->next_piece();
    if (!status.ok()) return status;
    const uint64_t before = first;
    for (; first < clusters && batch.size() < per_batch; first += per_piece) {
      Piece& piece = batch.emplace_back();
      piece.first_cluster = first;
      piece.count = std::min(per_piece, clusters - first);
      piece.block_index = first / per_block;
      piece.findings = Findings(context_->wants_lines());
    }
    run_pieces(context_->options.executor, batch.size(), batch.size(),
               [&](size_t i) { visit(&batch[i]); });
    for (Piece& piece : batch) {
      if (status.ok()) status = conclude(&piece);
    }
    if (!status.ok()) return status;
    batch.clear();
    context_->advance(divide_round_up(std::min(first, clusters) - before,
                                      kRefcountsPerPiece));
  }
  return absl::OkStatus();
}

StoredRefcounts::BlockState StoredRefcounts::read_piece(const Piece& piece,
                                                        Bytes* bytes) const {
  const uint64_t block = block_offset(piece.block_index);
  const uint64_t cluster_bytes = context_->geometry.cluster_bytes();
  if (block == 0) return BlockState::kNone;
  if (!is_aligned(block, cluster_bytes)) return BlockState::kUnaligned;
  if (block > kMaxFileBytes - cluster_bytes) return BlockState::kUnreadable;
  if (block >= context_->file->length_bytes()) return BlockState::kNone;
  const uint32_t order = context_->geometry.refcount_order;
  const uint64_t in_block =
      piece.first_cluster & (context_->geometry.refblock_entries() - 1);
  const uint64_t begin = refcount_bytes_of(order, in_block).begin;
  const uint64_t end = refcount_bytes_of(order, in_block + piece.count - 1).end;
  bytes->offset = block + begin;
  bytes->bytes.resize(end - begin);
  const absl::Status status =
      context_->file->read(Purpose::kRefblockLoad, bytes->bytes.data(),
                           bytes->bytes.size(), bytes->offset);
  return status.ok() ? BlockState::kRead : BlockState::kUnreadable;
}

StoredRefcounts::BlockState StoredRefcounts::read_block(
    uint64_t index, std::vector<uint8_t>* block) const {
  const uint64_t per_block = context_->geometry.refblock_entries();
  Piece whole;
  whole.first_cluster = index * per_block;
  whole.count = per_block;
  whole.block_index = index;
  Bytes bytes;
  const BlockState state = read_piece(whole, &bytes);
  *block = std::move(bytes.bytes);
  return state;
}

// ---- Comparing --------------------------------------------------------------

bool StoredRefcounts::compare_one(uint64_t index, uint64_t references, Fix fix,
                                  std::vector<uint8_t>* bytes, Piece* piece) {
  const uint32_t order = context_->geometry.refcount_order;
  const uint64_t cluster = piece->first_cluster + index;
  const uint64_t refcount =
      bytes->empty() ? 0 : load_refcount(bytes->data(), order, index);
  if (refcount > 0 || references > 0) piece->outcome.highest_cluster = cluster;
  if (refcount == references) return false;
  if (refcount == 0) piece->outcome.unusable = true;
  const bool leaked = refcount > references;
  const bool repairing = refcount != 0 && (leaked ? fix.leaks : fix.errors);
  piece->findings.note({leaked ? Finding::Kind::kRefcountTooHigh
                               : Finding::Kind::kRefcountTooLow,
                        repairing, cluster, refcount, references});
  CheckResult& counts = piece->findings.counts;
  if (!repairing) {
    ++(leaked ? counts.leaks : counts.corruptions);
    return false;
  }
  ++(leaked ? counts.leaks_fixed : counts.corruptions_fixed);
  store_refcount(bytes->data(), order, index, references);
  return true;
}

void StoredRefcounts::compare_piece(const ReferenceCounter& counter, Fix fix,
                                    Piece* piece) {
  Bytes bytes;
  piece->state = read_piece(*piece, &bytes);
  if (piece->state == BlockState::kUnaligned ||
      piece->state == BlockState::kUnreadable) {
    for (uint64_t i = 0; i < piece->count; ++i) {
      piece->findings.check_error(
          {Finding::Kind::kNoRefcount, false, piece->first_cluster + i});
    }
    return;
  }
  bool changed = false;
  for (uint64_t i = 0; i < piece->count; ++i) {
    changed |= compare_one(i, counter.get(piece->first_cluster + i), fix,
                           &bytes.bytes, piece);
  }
  if (!changed) return;
  piece->status =
      context_->file->write(Purpose::kRefblockUpdate, bytes.bytes.data(),
                            bytes.bytes.size(), bytes.offset);
}

absl::Status StoredRefcounts::conclude_comparison(Piece* piece,
                                                  Outcome* outcome) {
  if (piece->state == BlockState::kUnaligned && !said_unaligned_) {
    said_unaligned_ = true;
    context_->say(
        to_line({Finding::Kind::kBlockOffsetUnaligned, false,
                 block_offset(piece->block_index), piece->block_index}));
  }
  if (piece->state == BlockState::kUnaligned ||
      piece->state == BlockState::kUnreadable) {
    unreadable_[piece->block_index] = true;
  }
  outcome->unusable |= piece->outcome.unusable;
  outcome->highest_cluster =
      std::max(outcome->highest_cluster, piece->outcome.highest_cluster);
  context_->say(&piece->findings);
  return piece->status;
}

absl::Status StoredRefcounts::compare(const ReferenceCounter& counter,
                                      uint64_t clusters, Fix fix,
                                      Outcome* outcome) {
  absl::Status status = for_each_piece(
      clusters, [&](Piece* piece) { compare_piece(counter, fix, piece); },
      [&](Piece* piece) { return conclude_comparison(piece, outcome); });
  return status.ok() && fix.any() ? context_->file->flush() : status;
}

// ---- Keeping ----------------------------------------------------------------

absl::Status StoredRefcounts::keep(ReferenceCounter* keeper,
                                   uint64_t clusters) {
  keeper->clear();
  const uint32_t order = context_->geometry.refcount_order;
  absl::Status status = for_each_piece(
      clusters,
      [&](Piece* piece) {
        Bytes bytes;
        piece->state = read_piece(*piece, &bytes);
        if (piece->state != BlockState::kRead) return;
        for (uint64_t i = 0; i < piece->count; ++i) {
          const uint64_t refcount = load_refcount(bytes.bytes.data(), order, i);
          if (refcount != 0) keeper->set(piece->first_cluster + i, refcount);
        }
      },
      [&](Piece* piece) {
        if (piece->state == BlockState::kUnreadable)
          unreadable_[piece->block_index] = true;
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  keeper_ = keeper;
  kept_clusters_ = clusters;
  return status;
}

bool StoredRefcounts::is_unreadable(uint64_t index) const {
  const uint64_t offset = block_offset(index);
  return !is_aligned(offset, context_->geometry.cluster_bytes()) ||
         offset > kMaxFileBytes - context_->geometry.cluster_bytes() ||
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

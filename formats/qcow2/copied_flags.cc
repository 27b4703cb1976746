#include "formats/qcow2/copied_flags.h"

#include <algorithm>
#include <array>
#include <optional>

#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"
#include "formats/qcow2/table_entry.h"
#include "formats/qcow2/table_walk.h"

namespace spindle::qcow2 {
namespace {

class FlagCheck {
 public:
  FlagCheck(CheckContext* context, const StoredRefcounts& stored,
            const MetadataRanges* ranges)
      : context_(context), stored_(stored), ranges_(ranges) {}

  absl::Status run();

 private:
  bool repairs() const { return ranges_ != nullptr; }
  std::optional<uint64_t> refcount_at(uint64_t offset) const {
    return stored_.get(context_->geometry.cluster_index(offset));
  }
  void check_piece(const L2Piece& piece, Findings* findings);
  void check_l1_entry(const L2Piece& piece, uint64_t refcount,
                      Findings* findings);
  void check_l2_entries(const L2Piece& piece, Findings* findings);

  CheckContext* const context_;
  const StoredRefcounts& stored_;
  // Null: nothing is repaired.
  const MetadataRanges* const ranges_;
};

absl::Status FlagCheck::run() {
  // Repairs one by one: of two entries that name one table the second finds it
  // right.
  return walk_l2_tables(
      context_,
      {context_->header.l1_table_offset, context_->header.l1_entry_count},
      repairs() ? WalkOrder::kOneByOne : WalkOrder::kParallel,
      [this](const L2Piece& piece, Findings* findings) {
        if (piece.table_offset != 0) check_piece(piece, findings);
      });
}

void FlagCheck::check_piece(const L2Piece& piece, Findings* findings) {
  const std::optional<uint64_t> refcount = refcount_at(piece.table_offset);
  if (!refcount.has_value()) return;
  if (piece.begins_table()) check_l1_entry(piece, *refcount, findings);
  check_l2_entries(piece, findings);
}

void FlagCheck::check_l1_entry(const L2Piece& piece, uint64_t refcount,
                               Findings* findings) {
  if ((refcount == 1) == ((piece.l1_entry & kEntryCopied) != 0)) return;
  const bool repairing = repairs() && ranges_->l1_is_separate();
  findings->note({Finding::Kind::kCopiedOfL2Table, repairing, piece.l1_index,
                  piece.l1_entry, refcount});
  if (repairing) {
    std::array<uint8_t, kL1EntryBytes> bytes{};
    store_big64(bytes.data(), piece.l1_entry ^ kEntryCopied);
    const absl::Status written = context_->file->write(
        Purpose::kL1Update, bytes.data(), bytes.size(),
        context_->header.l1_table_offset + piece.l1_index * kL1EntryBytes);
    if (written.ok()) {
      ++findings->counts.corruptions_fixed;
      return;
    }
    ++findings->counts.check_errors;
  }
  ++findings->counts.corruptions;
}

void FlagCheck::check_l2_entries(const L2Piece& piece, Findings* findings) {
  L2Entries entries;
  if (!entries.read(*context_, piece).ok()) {
    findings->unreadable = Findings::Unreadable::kSaidBefore;
    return;
  }
  const uint64_t cluster_bytes = context_->geometry.cluster_bytes();
  // An entry in a table that is not aligned may be anything.
  const bool repairing =
      repairs() && is_aligned(piece.table_offset, cluster_bytes) &&
      !ranges_->overlaps({piece.table_offset, cluster_bytes});
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < entries.count(); ++i) {
    const uint64_t raw = entries.entry(i);
    const uint64_t host = raw & kL2OffsetMask;
    if (host == 0 || (raw & kL2Compressed) != 0) continue;
    std::optional<uint64_t> refcount = 1;
    if (!context_->header.has_data_file()) refcount = refcount_at(host);
    if (!refcount.has_value() ||
        (*refcount == 1) == ((raw & kEntryCopied) != 0)) {
      continue;
    }
    findings->note({Finding::Kind::kCopiedOfData, repairing, raw, *refcount});
    entries.set_entry(i, raw ^ kEntryCopied);
    ++wrong;
  }
  if (wrong == 0) return;
  if (repairing) {
    const absl::Status written =
        context_->file->write(Purpose::kL2Update, entries.bytes().data(),
                              entries.bytes().size(), entries.offset());
    if (written.ok()) {
      findings->counts.corruptions_fixed += wrong;
      return;
    }
    ++findings->counts.check_errors;
  }
  findings->counts.corruptions += wrong;
}

}  // namespace

// ---- MetadataRanges ---------------------------------------------------------

void MetadataRanges::add(uint64_t offset, uint64_t length) {
  if (length != 0) ranges_.push_back({offset, length});
}

void MetadataRanges::sort() {
  std::sort(ranges_.begin(), ranges_.end(),
            [](const ByteRange& a, const ByteRange& b) {
              return a.offset < b.offset;
            });
  // Merged in place: there may be a million.
  size_t count = 0;
  for (const ByteRange& range : ranges_) {
    if (count == 0 || range.offset > ranges_[count - 1].end()) {
      ranges_[count++] = range;
      continue;
    }
    ByteRange& last = ranges_[count - 1];
    last.length = std::max(last.end(), range.end()) - last.offset;
  }
  ranges_.resize(count);
}

absl::StatusOr<MetadataRanges> MetadataRanges::collect(
    const CheckContext& context, const StoredRefcounts& stored) {
  const Header& header = context.header;
  MetadataRanges result;
  result.ranges_.reserve(stored.table_entry_count() + header.snapshot_count +
                         4);
  result.add(0, header.cluster_size_bytes());
  result.add(header.refcount_table_offset, header.refcount_table_bytes());
  for (uint64_t i = 0; i < stored.table_entry_count(); ++i) {
    const uint64_t offset = stored.block_offset(i);
    // Far from the end of 64 bits.
    if (offset != 0 && offset < context.file_bytes())
      result.add(offset, header.cluster_size_bytes());
  }
  SnapshotTableReader reader(context.file, header, LongExtraData::kCut);
  while (!reader.at_end()) {
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    if (snapshot->l1_table_offset < context.file_bytes()) {
      result.add(snapshot->l1_table_offset,
                 snapshot->l1_entry_count * kL1EntryBytes);
    }
  }
  result.add(header.snapshots_offset, reader.length_bytes());
  result.sort();
  const ByteRange l1{header.l1_table_offset, header.l1_table_bytes()};
  result.l1_is_separate_ = l1.length != 0 && !result.overlaps(l1);
  result.add(l1.offset, l1.length);
  result.sort();
  return result;
}

bool MetadataRanges::overlaps(ByteRange range) const {
  const auto after = std::lower_bound(
      ranges_.begin(), ranges_.end(), range.end(),
      [](const ByteRange& r, uint64_t end) { return r.offset < end; });
  return after != ranges_.begin() && std::prev(after)->end() > range.offset;
}

// ---- The two repairs --------------------------------------------------------

absl::Status check_copied_flags(CheckContext* context,
                                const StoredRefcounts& stored, bool repair) {
  if (!repair) return FlagCheck(context, stored, nullptr).run();
  const absl::StatusOr<MetadataRanges> ranges =
      MetadataRanges::collect(*context, stored);
  if (!ranges.ok()) return ranges.status();
  absl::Status status = FlagCheck(context, stored, &*ranges).run();
  return status.ok() ? context->file->flush() : status;
}

absl::Status zero_entries(CheckContext* context, const StoredRefcounts& stored,
                          const std::vector<EntryToZero>& entries,
                          ReferenceWalk* walk) {
  if (entries.empty()) return absl::OkStatus();
  const absl::StatusOr<MetadataRanges> ranges =
      MetadataRanges::collect(*context, stored);
  if (!ranges.ok()) return ranges.status();
  const uint64_t cluster_bytes = context->geometry.cluster_bytes();
  Findings findings(context->wants_lines());
  for (const EntryToZero& entry : entries) {
    const uint64_t at = entry.table_offset +
                        entry.index * context->header.l2_entry_size_bytes();
    std::array<uint8_t, kL2EntryBytes> bytes{};
    absl::Status status =
        context->file->read(Purpose::kL2Load, bytes.data(), bytes.size(), at);
    if (!status.ok()) return status;
    if (load_big64(bytes.data()) != entry.entry) {
      // Two L1 entries name the table, and this was done for the first.
      --context->result.corruptions;
      continue;
    }
    if (ranges->overlaps({entry.table_offset, cluster_bytes})) {
      walk->count(L2Entry(entry.entry).host().bytes, cluster_bytes, &findings);
      continue;
    }
    // With subclusters their bitmap says it already.
    store_big64(bytes.data(), L2Entry::zero_plain(context->geometry).raw());
    status = context->file->write(Purpose::kL2Update, bytes.data(),
                                  bytes.size(), at);
    if (!status.ok()) return status;
    --context->result.corruptions;
    ++context->result.corruptions_fixed;
  }
  context->say(&findings);
  // Before the refcounts of what was dropped are lowered.
  return context->file->flush();
}

}  // namespace spindle::qcow2

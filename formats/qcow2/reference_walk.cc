#include "formats/qcow2/reference_walk.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {
namespace {

// How much a repair sets aside; more stays as it is until the next repair.
constexpr size_t kMaxSetAside = size_t{64} << 10;

}  // namespace

void ReferenceWalk::count(uint64_t offset, uint64_t length,
                          Findings* findings) {
  if (length == 0) return;
  const Geometry& geometry = context_->geometry;
  const std::optional<uint64_t> end = checked_add(offset, length);
  // The last cluster may end beyond the file.
  if (!end.has_value() || *end > kMaxSizeBytes ||
      (*end > file_bytes_ && *end - file_bytes_ >= geometry.cluster_bytes())) {
    findings->corruption({Finding::Kind::kBeyondEnd, false, offset, length});
    return;
  }
  const uint64_t first = geometry.cluster_index(offset);
  const uint64_t last = geometry.cluster_index(*end - 1);
  uint64_t counted = counted_clusters_.load(std::memory_order_relaxed);
  while (counted < last + 1 &&
         !counted_clusters_.compare_exchange_weak(counted, last + 1)) {
  }
  for (uint64_t cluster = first; cluster <= last; ++cluster) {
    if (counter_->add(cluster)) continue;
    findings->corruption(
        {Finding::Kind::kOverflow, false, geometry.cluster_offset(cluster)});
  }
}

absl::Status ReferenceWalk::count_all(bool with_refcount_table) {
  const Header& header = context_->header;
  const auto count_now = [this](uint64_t offset, uint64_t length) {
    Findings findings(context_->wants_lines());
    count(offset, length, &findings);
    context_->say(&findings);
  };
  count_now(0, header.cluster_size_bytes());
  absl::Status status = count_l1(
      {header.l1_table_offset, header.l1_entry_count}, /*active=*/true);
  if (status.ok()) status = count_snapshots();
  if (!status.ok()) return status;
  if (with_refcount_table)
    count_now(header.refcount_table_offset, header.refcount_table_bytes());
  count_encryption_header();
  return count_bitmaps();
}

// ---- L1 and L2 tables -------------------------------------------------------

absl::Status ReferenceWalk::count_l1(const L1Place& l1, bool active) {
  if (l1.entry_count == 0) return absl::OkStatus();
  Findings findings(context_->wants_lines());
  count(l1.offset, l1.entry_count * kL1EntryBytes, &findings);
  context_->say(&findings);
  if (l1.offset > kMaxSizeBytes - kMaxL1TableBytes) {
    Findings unreadable(context_->wants_lines());
    unreadable.check_error({Finding::Kind::kL1TableUnreadable});
    context_->say(&unreadable);
    return errno_status(EIO, "an L1 table lies beyond what a file can have");
  }
  return walk_l2_tables(context_, l1, WalkOrder::kParallel,
                        [&](const L2Piece& piece, Findings* of_piece) {
                          count_l2(piece, active, of_piece);
                        });
}

void ReferenceWalk::count_l2(const L2Piece& piece, bool active,
                             Findings* findings) {
  if (piece.begins_table()) {
    if ((piece.l1_entry & kL1ReservedMask) != 0) {
      findings->corruption(
          {Finding::Kind::kL1ReservedBits, false, piece.l1_entry});
    }
    count(piece.table_offset, context_->geometry.cluster_bytes(), findings);
    if (context_->geometry.offset_in_cluster(piece.table_offset) != 0) {
      findings->corruption(
          {Finding::Kind::kL2TableUnaligned, false, piece.table_offset});
    }
  }
  L2Entries entries;
  if (!entries.read(*context_, piece).ok()) {
    findings->unreadable = Findings::Unreadable::kSay;
    return;
  }
  for (uint64_t i = 0; i < entries.count(); ++i) {
    const uint64_t raw = entries.entry(i);
    if (raw == 0 && entries.bitmap(i) == 0) continue;
    if ((raw & kL2Compressed) != 0) {
      count_compressed(entries, piece, i, active, findings);
    } else {
      count_standard(entries, piece, i, active, findings);
    }
  }
}

void ReferenceWalk::count_compressed(const L2Entries& entries,
                                     const L2Piece& piece, uint64_t index,
                                     bool active, Findings* findings) {
  const uint64_t raw = entries.entry(index);
  const uint64_t in_table = piece.first_entry + index;
  const CompressedExtent extent = L2Entry(raw).compressed(context_->geometry);
  if ((raw & kEntryCopied) != 0) {
    findings->corruption(
        {Finding::Kind::kCompressedCopied, false, extent.host.bytes});
  }
  if (context_->header.has_data_file()) {
    findings->corruption({Finding::Kind::kCompressedExternal, false, in_table,
                          raw & ~kEntryCopied});
    return;
  }
  if (entries.bitmap(index) != 0) {
    findings->corruption({Finding::Kind::kCompressedSubclusters, false,
                          in_table, raw & ~kEntryCopied});
    return;
  }
  count(extent.host.bytes, extent.bytes, findings);
  if (!active) return;
  ++findings->counts.allocated_clusters;
  ++findings->counts.compressed_clusters;
  // It is never in line: its sectors are read anew for each cluster.
  ++findings->counts.fragmented_clusters;
}

void ReferenceWalk::count_standard(const L2Entries& entries,
                                   const L2Piece& piece, uint64_t index,
                                   bool active, Findings* findings) {
  const uint64_t raw = entries.entry(index);
  const uint64_t bitmap = entries.bitmap(index);
  const bool extended = context_->header.extended_l2();
  if ((raw & kL2StandardReservedMask) != 0)
    findings->corruption({Finding::Kind::kL2ReservedBits, false, raw});
  const uint64_t offset = L2Entry(raw).host().bytes;
  // Where the guest's first cluster stands in an external data file.
  const bool is_at_zero = context_->header.has_data_file() &&
                          (raw & kEntryCopied) != 0 &&
                          (extended || (raw & kL2ZeroFlag) == 0);
  if (offset == 0 && !is_at_zero) {
    // Only what has a place can be allocated.
    if (extended && (bitmap & UINT32_MAX) != 0)
      findings->corruption({Finding::Kind::kUnallocatedSubclusters});
    return;
  }
  if (((bitmap >> 32) & bitmap) != 0) {
    findings->corruption({Finding::Kind::kSubclustersBoth, false, offset});
  }
  if (context_->geometry.offset_in_cluster(offset) != 0) {
    const bool holds_data =
        extended ? (bitmap & UINT32_MAX) != 0 : (raw & kL2ZeroFlag) == 0;
    const bool zeroed =
        !holds_data &&
        set_aside({piece.table_offset, piece.first_entry + index, raw});
    findings->corruption({holds_data ? Finding::Kind::kDataUnaligned
                                     : Finding::Kind::kPreallocatedUnaligned,
                          zeroed, offset});
    if (zeroed) return;
  }
  if (active) {
    ++findings->counts.allocated_clusters;
    findings->add_data(offset, context_->geometry.cluster_bytes());
  }
  if (!context_->header.has_data_file())
    count(offset, context_->geometry.cluster_bytes(), findings);
}

bool ReferenceWalk::set_aside(const EntryToZero& entry) {
  if (!set_aside_ ||
      context_->geometry.offset_in_cluster(entry.table_offset) != 0) {
    return false;
  }
  absl::MutexLock lock(&mutex_);
  if (to_zero_.size() == kMaxSetAside) return false;
  to_zero_.push_back(entry);
  return true;
}

// ---- Everything else --------------------------------------------------------

absl::Status ReferenceWalk::count_snapshots() {
  const Header& header = context_->header;
  SnapshotTableReader reader(context_->file, header, LongExtraData::kCut);
  while (!reader.at_end()) {
    absl::Status status = context_->next_piece();
    if (!status.ok()) return status;
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    const std::string& id = snapshot->info.id;
    const std::string& name = snapshot->info.name;
    if (context_->geometry.offset_in_cluster(snapshot->l1_table_offset) != 0) {
      ++context_->result.corruptions;
      context_->say(absl::StrFormat(
          "ERROR snapshot %s (%s) l1_offset=%#x: L1 table is not cluster "
          "aligned; snapshot table entry corrupted",
          id, name, snapshot->l1_table_offset));
      continue;
    }
    if (snapshot->l1_entry_count > kMaxL1TableBytes / kL1EntryBytes) {
      ++context_->result.corruptions;
      context_->say(absl::StrFormat(
          "ERROR snapshot %s (%s) l1_size=%#x: L1 table is too large; snapshot "
          "table entry corrupted",
          id, name, snapshot->l1_entry_count));
      continue;
    }
    status = count_l1({snapshot->l1_table_offset, snapshot->l1_entry_count},
                      /*active=*/false);
    if (!status.ok()) return status;
  }
  Findings findings(context_->wants_lines());
  count(header.snapshots_offset, reader.length_bytes(), &findings);
  context_->say(&findings);
  return absl::OkStatus();
}

void ReferenceWalk::count_encryption_header() {
  const absl::StatusOr<std::optional<ByteRange>> area =
      find_luks_header(context_->header);
  if (!area.ok() || !area->has_value()) return;
  Findings findings(context_->wants_lines());
  count((*area)->offset, (*area)->length, &findings);
  context_->say(&findings);
}

absl::Status ReferenceWalk::count_bitmaps() {
  const absl::StatusOr<BitmapDirectory> directory =
      find_bitmap_directory(context_->header);
  if (!directory.ok()) return directory.status();
  if (directory->count == 0) return absl::OkStatus();
  Findings findings(context_->wants_lines());
  count(directory->offset, directory->length_bytes, &findings);
  context_->say(&findings);
  BitmapDirectoryReader reader(context_->file, context_->header, *directory,
                               BitmapDirectoryReader::ExtraData::kSkip);
  while (!reader.at_end()) {
    absl::Status status = context_->next_piece();
    if (!status.ok()) return status;
    const absl::StatusOr<BitmapEntry> bitmap = reader.next();
    if (!bitmap.ok()) {
      ++context_->result.corruptions;
      return bitmap.status();
    }
    status =
        count_bitmap_table(bitmap->table_offset, bitmap->table_entry_count);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReferenceWalk::count_bitmap_table(uint64_t offset,
                                               uint64_t entry_count) {
  constexpr uint64_t kEntriesPerRead = 8192;
  Findings findings(context_->wants_lines());
  count(offset, entry_count * kBitmapTableEntryBytes, &findings);
  std::vector<uint8_t> bytes;
  for (uint64_t first = 0; first < entry_count; first += kEntriesPerRead) {
    absl::Status status = context_->next_piece();
    const uint64_t at = offset + first * kBitmapTableEntryBytes;
    if (!status.ok() || at >= file_bytes_) return status;
    const uint64_t entries = std::min(kEntriesPerRead, entry_count - first);
    bytes.resize(entries * kBitmapTableEntryBytes);
    status =
        context_->file->read(Purpose::kL1Load, bytes.data(), bytes.size(), at);
    if (!status.ok()) return status;
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = load_big64(&bytes[i * kBitmapTableEntryBytes]);
      const uint64_t host = entry & kBitmapTableOffsetMask;
      if (!is_valid_bitmap_table_entry(entry,
                                       context_->geometry.cluster_bytes())) {
        ++findings.counts.corruptions;
      } else if (host != 0) {
        count(host, context_->geometry.cluster_bytes(), &findings);
      }
    }
    context_->say(&findings);
  }
  context_->say(&findings);
  return absl::OkStatus();
}

absl::Status ReferenceWalk::count_refcount_blocks(const StoredRefcounts& stored,
                                                  bool* unusable) {
  const Geometry& geometry = context_->geometry;
  Findings findings(context_->wants_lines());
  for (uint64_t i = 0; i < stored.table_entry_count(); ++i) {
    const uint64_t entry = stored.table_entry(i);
    if (entry == 0) continue;
    const uint64_t offset = stored.block_offset(i);
    const uint64_t cluster = geometry.cluster_index(offset);
    if ((entry & ~kRefcountTableOffsetMask) != 0) {
      findings.corruption({Finding::Kind::kBlockReservedBits, false, i});
      *unusable = true;
    } else if (geometry.offset_in_cluster(offset) != 0) {
      findings.corruption({Finding::Kind::kBlockUnaligned, false, i});
      *unusable = true;
    } else if (cluster >= counted_clusters()) {
      // Only a repair is prevented by it: what it counts is not there either.
      findings.corruption({Finding::Kind::kBlockBeyondEnd, false, i});
      if (context_->options.fix_errors) *unusable = true;
    } else {
      count(offset, geometry.cluster_bytes(), &findings);
      const uint64_t references = counter_->get(cluster);
      if (references != 1) {
        findings.corruption(
            {Finding::Kind::kBlockRefcount, false, i, references});
        *unusable = true;
      }
    }
    if (findings.are_many()) context_->say(&findings);
  }
  context_->say(&findings);
  return context_->next_piece();
}

}  // namespace spindle::qcow2

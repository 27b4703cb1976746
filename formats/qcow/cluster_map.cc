#include "formats/qcow/cluster_map.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/checked_math.h"

namespace spindle::qcow {

bool ClusterMap::is_beyond_end(ByteRange range) const {
  return parts_.allocator->is_beyond_end(range) &&
         range.end() >
             align_up(parts_.file->length_bytes(), geometry_.cluster_bytes());
}

absl::Status ClusterMap::check_entry(GuestOffset guest, L2Entry entry) const {
  const ByteRange place = entry.place(geometry_);
  switch (entry.kind()) {
    case ClusterKind::kUnallocated:
      return absl::OkStatus();
    case ClusterKind::kNormal:
      if (is_sector_aligned(place.offset)) return absl::OkStatus();
      return absl::DataLossError(absl::StrCat(
          "the L2 entry of guest offset ", guest.bytes, " names host offset ",
          place.offset, ", which is not a multiple of ", kSectorSizeBytes));
    case ClusterKind::kCompressed:
      if (!is_beyond_end(place)) return absl::OkStatus();
      return absl::DataLossError(absl::StrCat(
          "the L2 entry of guest offset ", guest.bytes, " names ", place.length,
          " bytes of compressed data at host offset ", place.offset,
          ", beyond the end of the file"));
  }
  return absl::InternalError("unknown kind of cluster");
}

absl::Status ClusterMap::check_table(uint64_t l1_index,
                                     HostOffset table) const {
  if (table.bytes <= kMaxFileBytes - geometry_.l2_table_bytes() &&
      !is_beyond_end({table.bytes, geometry_.l2_table_bytes()})) {
    return absl::OkStatus();
  }
  return absl::DataLossError(
      absl::StrCat("L1 entry ", l1_index, " names an L2 table at host offset ",
                   table.bytes, ", beyond the end of the file"));
}

absl::StatusOr<HostOffset> ClusterMap::slice_host(GuestOffset guest) const {
  const uint64_t l1_index = geometry_.l1_index(guest);
  const HostOffset table = parts_.l1->l2_table(l1_index);
  if (table.bytes == 0) return table;
  if (absl::Status legal = check_table(l1_index, table); !legal.ok())
    return legal;
  const uint64_t into_table = geometry_.l2_index(guest) * kL2EntryBytes;
  return HostOffset{table.bytes +
                    align_down(into_table, geometry_.slice_bytes)};
}

// ---- Looking up -------------------------------------------------------------

void ClusterMap::describe_missing_table(GuestOffset guest, uint64_t max_bytes,
                                        MappedRun* run) const {
  run->bytes = std::min(max_bytes, geometry_.bytes_left_in_slice(guest));
}

absl::Status ClusterMap::lookup(GuestOffset guest, uint64_t max_bytes,
                                MappedRun* run) {
  *run = MappedRun();
  absl::StatusOr<HostOffset> host = slice_host(guest);
  if (!host.ok()) return parts_.corruption->report(host.status().message());
  if (host->bytes == 0) {
    describe_missing_table(guest, max_bytes, run);
    return absl::OkStatus();
  }
  absl::Status status;
  const auto look = [&](Slice* slice) {
    status = describe(guest, max_bytes, slice, run);
    return true;
  };
  if (!parts_.l2_tables->try_look(*host, look)) {
    absl::StatusOr<SliceRef> slice = parts_.l2_tables->get(*host);
    if (!slice.ok()) return slice.status();
    status = describe(guest, max_bytes, slice->get(), run);
  }
  if (!status.ok()) return parts_.corruption->report(status.message());
  if (run->is_beyond_end && !parts_.file->child().read_only() &&
      !parts_.corruption->is_set()) {
    parts_.corruption
        ->report(absl::StrCat("the L2 entry of guest offset ", guest.bytes,
                              " names host offset ", run->host.bytes,
                              ", beyond the end of the file"))
        .IgnoreError();
  }
  return status;
}

bool ClusterMap::try_lookup(GuestOffset guest, uint64_t max_bytes,
                            MappedRun* run) {
  *run = MappedRun();
  const absl::StatusOr<HostOffset> host = slice_host(guest);
  if (!host.ok()) return false;
  if (host->bytes == 0) {
    describe_missing_table(guest, max_bytes, run);
    return true;
  }
  return parts_.l2_tables->try_look(*host, [&](Slice* slice) {
    return describe(guest, max_bytes, slice, run).ok() && !run->is_beyond_end;
  });
}

absl::Status ClusterMap::describe(GuestOffset guest, uint64_t max_bytes,
                                  Slice* slice, MappedRun* run) {
  const uint64_t cluster_bytes = geometry_.cluster_bytes();
  const uint64_t into_cluster = geometry_.offset_in_cluster(guest.bytes);
  const uint64_t limit =
      std::min(max_bytes, geometry_.bytes_left_in_slice(guest));
  size_t index = geometry_.index_in_slice(guest);

  MetadataReaderLock lock(&slice->mutex);
  const L2Entry first(slice->load64(index));
  absl::Status status = check_entry(guest, first);
  if (!status.ok()) return status;
  run->entry = first;
  run->kind = first.kind();
  run->bytes = cluster_bytes - into_cluster;
  if (run->kind == ClusterKind::kNormal)
    run->host = HostOffset{first.host().bytes + into_cluster};
  uint64_t count = 1;
  while (run->kind != ClusterKind::kCompressed && run->bytes < limit) {
    const L2Entry next(slice->load64(++index));
    const bool follows =
        next.kind() == run->kind &&
        (run->kind == ClusterKind::kUnallocated ||
         next.host().bytes == first.host().bytes + count * cluster_bytes);
    if (!follows) break;
    run->bytes += cluster_bytes;
    ++count;
  }
  run->is_beyond_end =
      run->kind == ClusterKind::kNormal &&
      is_beyond_end({first.host().bytes, count * cluster_bytes});
  run->bytes = std::min(run->bytes, limit);
  return absl::OkStatus();
}

// ---- Changing ---------------------------------------------------------------

absl::StatusOr<SliceRef> ClusterMap::slice_for_update(GuestOffset guest) {
  const uint64_t l1_index = geometry_.l1_index(guest);
  if (!parts_.l1->is_own(l1_index) && parts_.l1->begin_create(l1_index)) {
    absl::Status status = make_table(l1_index);
    if (!status.ok()) return status;
  }
  absl::StatusOr<HostOffset> host = slice_host(guest);
  if (!host.ok()) return parts_.corruption->report(host.status().message());
  if (host->bytes == 0) {
    // Another thread tried to make the table, and failed.
    return absl::UnavailableError(absl::StrCat(
        "the L2 table of guest offset ", guest.bytes, " could not be created"));
  }
  return parts_.l2_tables->get(*host);
}

// Space for a table, which reads as zeroes.
absl::StatusOr<ByteRange> ClusterMap::place_table() {
  absl::StatusOr<Allocator::Allocation> table =
      parts_.allocator->allocate(geometry_.l2_table_bytes());
  if (!table.ok()) {
    return absl::IsDataLoss(table.status())
               ? parts_.corruption->report(table.status().message())
               : table.status();
  }
  if (table->reads_as_zeroes) return table->range;
  absl::Status status =
      parts_.file->write_zeroes(Purpose::kL2AllocWrite, table->range, {});
  if (status.ok()) return table->range;
  parts_.allocator->free_unpublished(table->range);
  return status;
}

absl::Status ClusterMap::make_table(uint64_t l1_index) {
  // Published only when it has its content, so that no reader, and after a
  // crash no durable L1 entry, finds anything else there.
  const absl::StatusOr<ByteRange> table = place_table();
  absl::Status status = table.status();
  if (status.ok()) {
    status = parts_.extents->add(MetadataKind::kL2Table, *table);
    if (!status.ok()) status = parts_.corruption->report(status.message());
  }
  if (status.ok()) parts_.allocator->note_published(*table);
  parts_.l1->end_create(l1_index, HostOffset{status.ok() ? table->offset : 0});
  return status;
}

}  // namespace spindle::qcow

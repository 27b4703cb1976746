#include "formats/qcow2/cluster_map.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/checked_math.h"
#include "formats/qcow2/l2_slice.h"
#include "formats/qcow2/subclusters.h"

namespace spindle::qcow2 {

absl::Status ClusterMap::check_external_entry(GuestOffset guest,
                                              L2Entry entry) const {
  if (entry.kind() == ClusterKind::kCompressed) {
    return absl::DataLossError(absl::StrCat(
        "the L2 entry of guest offset ", guest.bytes,
        " names a compressed cluster, which an external data file has not"));
  }
  const uint64_t wanted = geometry_.cluster_start(guest.bytes);
  if (!entry.has_host() || entry.host().bytes == wanted)
    return absl::OkStatus();
  // A zero cluster without a place of its own, and COPIED: at offset 0.
  if (entry.kind() == ClusterKind::kZeroPlain) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "the L2 entry of guest offset ", guest.bytes, " names offset ",
      entry.host().bytes, " of the external data file: it must be ", wanted));
}

absl::Status ClusterMap::check_entry(GuestOffset guest, L2Entry entry) const {
  absl::Status status = check_form(guest, entry);
  if (!status.ok() || entry.kind() != ClusterKind::kCompressed) return status;
  const CompressedExtent extent = entry.compressed(geometry_);
  const uint64_t file_bytes = parts_.file->length_bytes();
  if (extent.host.bytes < file_bytes) return status;
  return absl::DataLossError(
      absl::StrCat("the L2 entry of guest offset ", guest.bytes,
                   " names compressed data at host offset ", extent.host.bytes,
                   ", beyond the file's ", file_bytes, " bytes"));
}

absl::Status ClusterMap::check_form(GuestOffset guest, L2Entry entry) const {
  if (geometry_.external_data) {
    absl::Status status = check_external_entry(guest, entry);
    if (!status.ok()) return status;
  }
  if (geometry_.extended_l2 && !is_valid_bitmap(entry)) {
    return absl::DataLossError(absl::StrFormat(
        "the L2 entry of guest offset %d names host offset %d and has the "
        "subcluster bitmap %#x, which contradicts itself or that",
        guest.bytes, entry.host().bytes, entry.bitmap()));
  }
  switch (entry.kind()) {
    case ClusterKind::kUnallocated:
    case ClusterKind::kCompressed:
      return absl::OkStatus();
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      if (geometry_.version < 3) {
        return absl::DataLossError(
            absl::StrCat("the L2 entry of guest offset ", guest.bytes,
                         " is marked as zero, which version ",
                         geometry_.version, " has not"));
      }
      break;
    case ClusterKind::kNormal:
      break;
  }
  if (is_aligned(entry.host().bytes, geometry_.cluster_bytes()))
    return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      "the L2 entry of guest offset ", guest.bytes, " names host offset ",
      entry.host().bytes, ", which is not a multiple of the cluster size ",
      geometry_.cluster_bytes()));
}

absl::Status ClusterMap::check_table(uint64_t l1_index,
                                     HostOffset table) const {
  if (is_aligned(table.bytes, geometry_.cluster_bytes()) &&
      !parts_.allocator->is_beyond_high_water(
          {geometry_.cluster_index(table.bytes), 1})) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "L1 entry ", l1_index, " names an L2 table at host offset ", table.bytes,
      ", which is not a multiple of the cluster size ",
      geometry_.cluster_bytes(), " or lies beyond the end of the file"));
}

absl::StatusOr<HostOffset> ClusterMap::slice_host(GuestOffset guest,
                                                  TableUse use) const {
  const uint64_t l1_index = geometry_.l1_index(guest);
  const HostOffset table = parts_.l1->l2_table(l1_index);
  if (table.bytes == 0) return table;
  if (absl::Status legal = check_table(l1_index, table); !legal.ok()) {
    const bool is_beyond_end =
        is_aligned(table.bytes, geometry_.cluster_bytes());
    if (is_beyond_end && use == TableUse::kLookUp) return HostOffset{0};
    return legal;
  }
  const uint64_t into_table =
      geometry_.l2_index(guest) * geometry_.l2_entry_bytes();
  return HostOffset{table.bytes +
                    align_down(into_table, geometry_.slice_bytes)};
}

void ClusterMap::describe_missing_table(GuestOffset guest, uint64_t max_bytes,
                                        MappedRun* run) const {
  run->kind = ClusterKind::kUnallocated;
  run->entry = L2Entry();
  run->bytes = std::min(max_bytes, bytes_left_in_slice(guest));
}

absl::Status ClusterMap::lookup(GuestOffset guest, uint64_t max_bytes,
                                MappedRun* run) {
  *run = MappedRun();
  absl::StatusOr<HostOffset> host = slice_host(guest, TableUse::kLookUp);
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
  return status;
}

bool ClusterMap::try_lookup(GuestOffset guest, uint64_t max_bytes,
                            MappedRun* run) {
  *run = MappedRun();
  const absl::StatusOr<HostOffset> host = slice_host(guest, TableUse::kLookUp);
  if (!host.ok()) return false;
  if (host->bytes == 0) {
    describe_missing_table(guest, max_bytes, run);
    return true;
  }
  return parts_.l2_tables->try_look(*host, [&](Slice* slice) {
    return describe(guest, max_bytes, slice, run).ok();
  });
}

absl::Status ClusterMap::describe(GuestOffset guest, uint64_t max_bytes,
                                  Slice* slice, MappedRun* run) {
  if (geometry_.extended_l2)
    return describe_subclusters(guest, max_bytes, slice, run);
  const uint64_t cluster_bytes = geometry_.cluster_bytes();
  const uint64_t into_cluster = geometry_.offset_in_cluster(guest.bytes);
  const uint64_t limit = std::min(max_bytes, bytes_left_in_slice(guest));
  size_t index = index_in_slice(guest);

  MetadataReaderLock lock(&slice->mutex);
  const L2Entry first = load_entry(*slice, geometry_, index);
  absl::Status status = check_form(guest, first);
  if (!status.ok()) return status;
  run->entry = first;
  run->kind = first.kind();
  run->writable_in_place = first.writable_in_place();
  run->bytes = cluster_bytes - into_cluster;

  if (run->kind == ClusterKind::kCompressed) {
    run->bytes = std::min(run->bytes, limit);
    pin(1, run);
    return absl::OkStatus();
  }
  const bool has_host = first.has_host();
  if (has_host) run->host = HostOffset{first.host().bytes + into_cluster};
  uint64_t count = 1;
  while (run->bytes < limit) {
    const L2Entry next = load_entry(*slice, geometry_, ++index);
    const bool follows =
        next.kind() == run->kind && next.copied() == first.copied() &&
        (!has_host ||
         next.host().bytes == first.host().bytes + count * cluster_bytes);
    if (!follows) break;
    run->bytes += cluster_bytes;
    ++count;
  }
  run->bytes = std::min(run->bytes, limit);
  pin(count, run);
  return absl::OkStatus();
}

absl::Status ClusterMap::describe_subclusters(GuestOffset guest,
                                              uint64_t max_bytes, Slice* slice,
                                              MappedRun* run) {
  const uint64_t cluster_bytes = geometry_.cluster_bytes();
  const uint64_t into_cluster = geometry_.offset_in_cluster(guest.bytes);
  const uint64_t limit = std::min(max_bytes, bytes_left_in_slice(guest));
  size_t index = index_in_slice(guest);

  MetadataReaderLock lock(&slice->mutex);
  const L2Entry first = load_entry(*slice, geometry_, index);
  absl::Status status = check_form(guest, first);
  if (!status.ok()) return status;
  KindRun part = kind_run(geometry_, first, guest);
  run->entry = first;
  run->kind = part.kind;
  run->writable_in_place = part.kind == ClusterKind::kNormal && first.copied();
  run->bytes = part.bytes;
  const bool is_compressed = part.kind == ClusterKind::kCompressed;
  const bool has_host = first.has_host() && !is_compressed;
  if (has_host) run->host = HostOffset{first.host().bytes + into_cluster};
  uint64_t count = 1;
  // On into the next cluster, if this one is of that kind up to its end.
  while (!is_compressed && run->bytes < limit &&
         geometry_.offset_in_cluster(guest.bytes + run->bytes) == 0) {
    const L2Entry next = load_entry(*slice, geometry_, ++index);
    const bool follows =
        is_valid_bitmap(next) && next.copied() == first.copied() &&
        next.host().bytes ==
            (has_host ? first.host().bytes + count * cluster_bytes : 0);
    if (!follows) break;
    part = kind_run(geometry_, next, {guest.bytes + run->bytes});
    if (part.kind != run->kind) break;
    run->bytes += part.bytes;
    ++count;
  }
  run->bytes = std::min(run->bytes, limit);
  pin(count, run);
  return absl::OkStatus();
}

void ClusterMap::pin(uint64_t cluster_count, MappedRun* run) const {
  HostClusters used;
  if (run->kind == ClusterKind::kNormal) {
    used = {geometry_.cluster_index(run->entry.host().bytes), cluster_count};
  } else if (run->kind == ClusterKind::kCompressed) {
    used = run->entry.references(geometry_);
  } else {
    return;
  }
  run->pin = InFlight::Pin(parts_.in_flight, used);
}

absl::StatusOr<SliceRef> ClusterMap::slice_if_present(GuestOffset guest) {
  absl::StatusOr<HostOffset> host = slice_host(guest, TableUse::kChange);
  if (!host.ok()) return parts_.corruption->report(host.status().message());
  if (host->bytes == 0) return SliceRef();
  return parts_.l2_tables->get(*host);
}

absl::StatusOr<SliceRef> ClusterMap::slice_for_update(GuestOffset guest) {
  const uint64_t l1_index = geometry_.l1_index(guest);
  if (!parts_.l1->is_own(l1_index) && parts_.l1->begin_create(l1_index)) {
    absl::Status status = make_own_table(l1_index);
    if (!status.ok()) return status;
  }
  absl::StatusOr<SliceRef> slice = slice_if_present(guest);
  if (slice.ok() && (!*slice || !parts_.l1->is_own(l1_index))) {
    // Another thread tried to make the table, and failed.
    return absl::UnavailableError(absl::StrCat(
        "the L2 table of guest offset ", guest.bytes, " could not be created"));
  }
  return slice;
}

absl::StatusOr<SliceRef> ClusterMap::slice_for_update_if_present(
    GuestOffset guest) {
  if (parts_.l1->l2_table(geometry_.l1_index(guest)).bytes == 0)
    return SliceRef();
  return slice_for_update(guest);
}

absl::Status ClusterMap::fill_table(const Allocator::Allocation& table,
                                    ByteRange range, HostOffset old) {
  if (old.bytes == 0) {
    return table.reads_as_zeroes
               ? absl::OkStatus()
               : parts_.file->write_zeroes(Purpose::kL2AllocWrite, range, {});
  }
  // A shared table does not change.
  std::vector<uint8_t> bytes(range.length);
  absl::Status status = parts_.file->read(
      Purpose::kL2AllocCowRead, bytes.data(), bytes.size(), old.bytes);
  if (!status.ok()) return status;
  return parts_.file->write(Purpose::kL2AllocWrite, bytes.data(), bytes.size(),
                            range.offset);
}

absl::StatusOr<Allocator::Allocation> ClusterMap::allocate_table(
    uint64_t l1_index, HostOffset old) {
  if (old.bytes != 0) {
    const absl::Status legal = check_table(l1_index, old);
    if (!legal.ok()) return parts_.corruption->report(legal.message());
  }
  return parts_.allocator->allocate(1);
}

absl::Status ClusterMap::make_own_table(uint64_t l1_index) {
  const HostOffset old = parts_.l1->l2_table(l1_index);
  absl::StatusOr<Allocator::Allocation> table = allocate_table(l1_index, old);
  absl::Status status = table.status();
  ByteRange range;
  if (status.ok()) {
    range = {geometry_.cluster_offset(table->clusters.first),
             geometry_.cluster_bytes()};
    // Published only when it has its content, so that no reader, and after a
    // crash no durable L1 entry, finds anything else there.
    status = fill_table(*table, range, old);
    if (!status.ok()) parts_.allocator->free_unpublished(table->clusters);
  }
  if (status.ok()) {
    status = parts_.extents->add(MetadataKind::kL2Table, range);
    if (!status.ok()) status = parts_.corruption->report(status.message());
  }
  if (status.ok()) parts_.allocator->note_published(table->clusters);
  parts_.l1->end_create(l1_index, HostOffset{status.ok() ? range.offset : 0});
  if (status.ok() && old.bytes != 0) {
    parts_.extents->remove({old.bytes, geometry_.cluster_bytes()});
    parts_.pending->add_dropped({geometry_.cluster_index(old.bytes), 1});
  }
  return status;
}

}  // namespace spindle::qcow2

#include "formats/qcow2/snapshots.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/header_switch.h"
#include "formats/qcow2/image_size.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

Snapshots::Snapshots(Image* image, TableReferences* references)
    : image_(*image), references_(*references) {}

// ---- The table --------------------------------------------------------------

absl::Status Snapshots::load() {
  if (loaded_) return absl::OkStatus();
  SnapshotTableReader reader(&image_.file(), image_.header());
  std::vector<Snapshot> snapshots;
  while (!reader.at_end()) {
    absl::StatusOr<Snapshot> next = reader.next();
    if (!next.ok()) return next.status();
    snapshots.push_back(*std::move(next));
  }
  snapshots_ = std::move(snapshots);
  table_ = {image_.header().snapshots_offset,
            align_up(reader.length_bytes(), image_.geometry().cluster_bytes())};
  loaded_ = true;
  return absl::OkStatus();
}

ByteRange Snapshots::l1_extent(const Snapshot& snapshot) const {
  return {snapshot.l1_table_offset,
          align_up(uint64_t{snapshot.l1_entry_count} * kL1EntryBytes,
                   image_.geometry().cluster_bytes())};
}

absl::Status Snapshots::check_l1(const Snapshot& snapshot) const {
  return check_snapshot_l1(snapshot, image_.geometry().cluster_bytes(),
                           image_.file().length_bytes());
}

absl::Status Snapshots::enter_extents() {
  if (entered_extents_) return absl::OkStatus();
  std::vector<ByteRange> entered;
  const auto enter = [&](MetadataKind kind, ByteRange range) {
    absl::Status status = image_.extents().add(kind, range);
    if (status.ok()) entered.push_back(range);
    return status;
  };
  absl::Status status = enter(MetadataKind::kSnapshotTable, table_);
  for (const Snapshot& snapshot : snapshots_) {
    if (!status.ok()) break;
    // A damaged one keeps nobody from the disk: nothing uses it.
    if (!check_l1(snapshot).ok()) continue;
    status = enter(MetadataKind::kSnapshotL1Table, l1_extent(snapshot));
  }
  if (!status.ok()) {
    for (const ByteRange range : entered) image_.extents().remove(range);
    return status;
  }
  entered_extents_ = true;
  return status;
}

absl::StatusOr<std::vector<SnapshotInfo>> Snapshots::list() {
  std::vector<SnapshotInfo> infos;
  if (loaded_) {
    for (const Snapshot& snapshot : snapshots_) infos.push_back(snapshot.info);
    return infos;
  }
  // Opened for reading: nothing is kept, so that several may list at a time.
  SnapshotTableReader reader(&image_.file(), image_.header());
  while (!reader.at_end()) {
    absl::StatusOr<Snapshot> next = reader.next();
    if (!next.ok()) return next.status();
    infos.push_back(std::move(next->info));
  }
  return infos;
}

absl::StatusOr<size_t> Snapshots::find(absl::string_view snapshot) const {
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    if (snapshots_[i].info.id == snapshot) return i;
  }
  for (size_t i = 0; i < snapshots_.size(); ++i) {
    if (snapshots_[i].info.name == snapshot) return i;
  }
  return absl::NotFoundError(
      absl::StrCat("the image has no snapshot '", snapshot, "'"));
}

// One more than the highest number.
std::string Snapshots::unused_id() const {
  uint64_t highest = 0;
  for (const Snapshot& snapshot : snapshots_) {
    uint64_t id = 0;
    if (absl::SimpleAtoi(snapshot.info.id, &id) && id < UINT64_MAX)
      highest = std::max(highest, id);
  }
  return absl::StrCat(highest + 1);
}

// ---- Writing ----------------------------------------------------------------

absl::Status Snapshots::switch_header(ByteRange place, size_t count) {
  const auto fields = [](uint64_t offset, size_t entry_count) {
    std::vector<uint8_t> bytes(12);
    store_big32(bytes.data(), static_cast<uint32_t>(entry_count));
    store_big64(&bytes[4], offset);
    return bytes;
  };
  static_assert(kSnapshotsOffsetOffset == kSnapshotCountOffset + 4);
  return switch_header_fields(
      &image_.file(), &image_.corruption(),
      {.offset = kSnapshotCountOffset,
       .before = fields(table_.offset, snapshots_.size()),
       .after = fields(place.offset, count),
       .what = "the snapshot table was replaced"});
}

absl::Status Snapshots::write_table(absl::Span<const uint8_t> bytes,
                                    ByteRange* place) {
  *place = {};
  if (bytes.empty()) return absl::OkStatus();
  const Geometry& geometry = image_.geometry();
  const absl::StatusOr<Allocator::Allocation> clusters =
      image_.allocator().allocate(geometry.clusters_for(bytes.size()));
  if (!clusters.ok()) return clusters.status();
  *place = {geometry.cluster_offset(clusters->clusters.first),
            geometry.cluster_offset(clusters->clusters.count)};
  image_.allocator().note_published(clusters->clusters);
  return image_.file().write(Purpose::kSnapshotUpdate, bytes.data(),
                             bytes.size(), place->offset);
}

absl::Status Snapshots::switch_to(std::vector<Snapshot> wanted) {
  const Geometry& geometry = image_.geometry();
  const absl::StatusOr<std::vector<uint8_t>> bytes =
      serialize_snapshot_table(wanted);
  if (!bytes.ok()) return bytes.status();
  const auto clusters_of = [&](ByteRange range) {
    return HostClusters{geometry.cluster_index(range.offset),
                        geometry.cluster_index(range.length)};
  };
  ByteRange place;
  absl::Status status = write_table(*bytes, &place);
  // The table, its refcounts and those of what it names are durable before the
  // header names it.
  if (status.ok()) status = image_.rounds().settle();
  if (status.ok()) status = switch_header(place, wanted.size());
  if (!status.ok()) {
    // Where the header may name the new table, that stays counted.
    if (!image_.corruption().is_set())
      image_.allocator().free_unpublished(clusters_of(place));
    return status;
  }
  const ByteRange old = std::exchange(table_, place);
  snapshots_ = std::move(wanted);
  image_.extents().remove(old);
  image_.pending().add_durably_dropped(clusters_of(old));
  status = image_.extents().add(MetadataKind::kSnapshotTable, place);
  if (!status.ok()) return image_.corruption().report(status.message());
  return status;
}

// ---- The operations ---------------------------------------------------------

absl::StatusOr<SnapshotInfo> Snapshots::create(const SnapshotInfo& wanted) {
  absl::Status status = image_.corruption().writes_allowed();
  if (!status.ok()) return status;
  if (snapshots_.size() >= kMaxSnapshotCount) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the image has ", snapshots_.size(),
                     " snapshots: the limit is ", kMaxSnapshotCount));
  }
  status = image_.rounds().settle();
  if (!status.ok()) return status;

  const Geometry& geometry = image_.geometry();
  Snapshot snapshot;
  snapshot.info = wanted;
  snapshot.info.id = unused_id();
  snapshot.info.disk_size_bytes = geometry.size_bytes;
  const TableReferences::L1Entries entries = references_.active_l1();
  snapshot.l1_entry_count = static_cast<uint32_t>(entries.size());

  HostClusters l1;
  if (!entries.empty()) {
    const absl::StatusOr<Allocator::Allocation> allocation =
        image_.allocator().allocate(
            geometry.clusters_for(entries.size() * kL1EntryBytes));
    if (!allocation.ok()) return allocation.status();
    l1 = allocation->clusters;
    image_.allocator().note_published(l1);
    snapshot.l1_table_offset = geometry.cluster_offset(l1.first);
  }
  status = references_.write_l1(Purpose::kSnapshotUpdate, entries,
                                {snapshot.l1_table_offset});
  bool counted = false;
  if (status.ok()) {
    status = references_.add_references(entries);
    counted = status.ok();
  }
  if (status.ok()) status = references_.update_copied_flags();
  if (status.ok()) {
    std::vector<Snapshot> all = snapshots_;
    all.push_back(snapshot);
    status = switch_to(std::move(all));
  }
  if (status.ok()) {
    status = image_.extents().add(MetadataKind::kSnapshotL1Table,
                                  l1_extent(snapshot));
    if (!status.ok()) return image_.corruption().report(status.message());
    status = image_.rounds().settle();
    if (!status.ok()) return status;
    if (wanted.vm_state_bytes != 0) forget_vmstate();
    return snapshot.info;
  }
  // Nothing names the new references.  Where even this fails there are leaks,
  // and flags that make writes go elsewhere for nothing.
  if (image_.corruption().is_set()) return status;
  if (counted) references_.drop_references(entries).IgnoreError();
  image_.allocator().free_unpublished(l1);
  references_.settle_references().IgnoreError();
  return status;
}

// It is the snapshot's now.  In the active tables it would be copied by the
// next one; what is left there does no harm.
void Snapshots::forget_vmstate() {
  const Geometry& geometry = image_.geometry();
  references_.drop_active_tables(geometry.l1_entries_for(geometry.size_bytes))
      .IgnoreError();
  image_.rounds().settle().IgnoreError();
}

// The disk of a snapshot may have another length, and its L1 table more entries
// (vmstate, or a disk that was longer).
absl::Status Snapshots::make_room_for(const Snapshot& snapshot) {
  const Geometry& geometry = image_.geometry();
  const uint64_t size = snapshot.info.disk_size_bytes;
  if (size != geometry.size_bytes && geometry.version < kVersion3) {
    return absl::FailedPreconditionError(absl::StrCat(
        "Can't resize a v2 image which has snapshots: the snapshot's disk has ",
        size, " bytes, the image ", geometry.size_bytes));
  }
  absl::Status status = check_size(geometry, size);
  if (!status.ok()) return status;
  return grow_l1(&image_, std::max<uint64_t>(snapshot.l1_entry_count,
                                             geometry.l1_entries_for(size)));
}

absl::Status Snapshots::switch_disk(
    const TableReferences::L1Entries& old_entries,
    const TableReferences::L1Entries& new_entries, uint64_t size_bytes) {
  absl::Status status =
      references_.overwrite_active_l1(0, old_entries, new_entries);
  if (!status.ok()) return status;
  status = switch_size(&image_, size_bytes);
  if (!status.ok() && !image_.corruption().is_set()) {
    // Back; if not even that can be done, it says so.
    references_.overwrite_active_l1(0, new_entries, old_entries).IgnoreError();
  }
  return status;
}

absl::Status Snapshots::apply(absl::string_view name) {
  absl::Status status = image_.corruption().writes_allowed();
  if (!status.ok()) return status;
  const absl::StatusOr<size_t> index = find(name);
  if (!index.ok()) return index.status();
  const Snapshot& snapshot = snapshots_[*index];
  status = check_l1(snapshot);
  if (status.ok()) status = make_room_for(snapshot);
  if (status.ok()) status = image_.rounds().settle();
  if (!status.ok()) return status;
  const absl::StatusOr<TableReferences::L1Entries> read =
      references_.read_l1({snapshot.l1_table_offset}, snapshot.l1_entry_count);
  if (!read.ok()) return read.status();
  TableReferences::L1Entries entries = *read;
  for (uint64_t& entry : entries) entry &= kL1OffsetMask;  // all shared
  entries.resize(image_.l1().entry_count());
  const TableReferences::L1Entries old_entries = references_.active_l1();
  const uint64_t old_size = image_.geometry().size_bytes;

  status = references_.add_references(entries);
  if (!status.ok()) return status;
  status = image_.rounds().settle();
  if (status.ok())
    status = switch_disk(old_entries, entries, snapshot.info.disk_size_bytes);
  if (!status.ok()) {
    if (image_.corruption().writes_allowed().ok()) {
      references_.drop_references(entries).IgnoreError();
      image_.rounds().settle().IgnoreError();
    }
    return status;
  }
  // Durable: the old tables belong to other snapshots, or to nobody.
  image_.l1().replace(entries);
  references_.remove_extents(old_entries);
  const absl::Status dropped = references_.drop_references(old_entries);
  references_.forget_tables(old_entries);
  status = references_.add_extents(entries);
  if (status.ok()) status = references_.settle_references();
  // As after any other shrink; what cannot be given up does no harm.
  if (status.ok() && image_.geometry().size_bytes < old_size)
    give_up_unused_space(&image_).IgnoreError();
  return status.ok() ? dropped : status;
}

absl::Status Snapshots::remove(absl::string_view name) {
  absl::Status status = image_.corruption().writes_allowed();
  if (!status.ok()) return status;
  const absl::StatusOr<size_t> index = find(name);
  if (!index.ok()) return index.status();
  const Snapshot snapshot = snapshots_[*index];
  status = check_l1(snapshot);
  if (!status.ok()) return status;
  const absl::StatusOr<TableReferences::L1Entries> entries =
      references_.read_l1({snapshot.l1_table_offset}, snapshot.l1_entry_count);
  if (!entries.ok()) return entries.status();
  status = image_.rounds().settle();
  if (!status.ok()) return status;
  std::vector<Snapshot> rest = snapshots_;
  rest.erase(rest.begin() + static_cast<ptrdiff_t>(*index));
  status = switch_to(std::move(rest));
  if (!status.ok()) return status;

  // From here on the snapshot is gone, whatever happens.
  const Geometry& geometry = image_.geometry();
  status = references_.drop_references(*entries);
  const ByteRange l1 = l1_extent(snapshot);
  image_.extents().remove(l1);
  image_.pending().add_durably_dropped(
      {geometry.cluster_index(l1.offset), geometry.cluster_index(l1.length)});
  references_.forget_tables(*entries);
  const absl::Status settled = references_.settle_references();
  return settled.ok() ? status : settled;
}

}  // namespace spindle::qcow2

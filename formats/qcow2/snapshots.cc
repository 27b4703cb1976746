#include "formats/qcow2/snapshots.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/l2_slice.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {
namespace {

// How many references are given up before the refcounts are lowered.
constexpr uint64_t kDropsPerRound = 65536;

constexpr HostOffset l2_table_of(uint64_t l1_entry) {
  return HostOffset{l1_entry & kL1OffsetMask};
}

// Gathers references that follow each other into runs.
class RunGatherer {
 public:
  using Visit = absl::FunctionRef<absl::Status(HostClusters clusters)>;
  explicit RunGatherer(Visit visit) : visit_(visit) {}

  absl::Status add(HostClusters clusters) {
    if (clusters.count == 0) return absl::OkStatus();
    if (run_.count != 0 && clusters.first == run_.end()) {
      run_.count += clusters.count;
      return absl::OkStatus();
    }
    absl::Status status = finish();
    run_ = clusters;
    return status;
  }
  absl::Status finish() {
    const HostClusters run = std::exchange(run_, {});
    return run.count == 0 ? absl::OkStatus() : visit_(run);
  }

 private:
  const Visit visit_;
  HostClusters run_;
};

}  // namespace

Snapshots::Snapshots(Image* image) : image_(*image) {}

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

absl::Status Snapshots::check_tables() const {
  const uint64_t file_end =
      align_up(image_.file().length_bytes(), image_.geometry().cluster_bytes());
  for (const Snapshot& snapshot : snapshots_) {
    const uint64_t bytes = uint64_t{snapshot.l1_entry_count} * kL1EntryBytes;
    if (bytes > kMaxL1TableBytes) {
      return absl::DataLossError(
          absl::StrCat("the L1 table of snapshot '", snapshot.info.id, "' has ",
                       bytes, " bytes: the limit is ", kMaxL1TableBytes));
    }
    if (!is_aligned(snapshot.l1_table_offset,
                    image_.geometry().cluster_bytes()) ||
        snapshot.l1_table_offset > file_end ||
        bytes > file_end - snapshot.l1_table_offset) {
      return absl::DataLossError(absl::StrCat(
          "the L1 table of snapshot '", snapshot.info.id, "' at host offset ",
          snapshot.l1_table_offset, ", ", bytes,
          " bytes long, is not aligned to clusters or ends beyond the file's ",
          image_.file().length_bytes(), " bytes"));
    }
  }
  return absl::OkStatus();
}

absl::Status Snapshots::prepare_for_writing() {
  absl::Status status = load();
  return status.ok() ? check_tables() : status;
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

// ---- What tables refer to ---------------------------------------------------

Snapshots::L1Entries Snapshots::active_l1() const {
  L1Entries entries(image_.l1().entry_count());
  for (uint64_t i = 0; i < entries.size(); ++i)
    entries[i] = image_.l1().raw_entry(i);
  return entries;
}

absl::StatusOr<Snapshots::L1Entries> Snapshots::read_l1(
    const Snapshot& snapshot) {
  std::vector<uint8_t> bytes(uint64_t{snapshot.l1_entry_count} * kL1EntryBytes);
  if (!bytes.empty()) {
    absl::Status status = image_.file().read(
        Purpose::kL1Load, bytes.data(), bytes.size(), snapshot.l1_table_offset);
    if (!status.ok()) return status;
  }
  L1Entries entries(snapshot.l1_entry_count);
  for (size_t i = 0; i < entries.size(); ++i)
    entries[i] = load_big64(&bytes[i * kL1EntryBytes]);
  return entries;
}

absl::Status Snapshots::visit_l2_table(HostOffset table, Visit visit) {
  const Geometry& geometry = image_.geometry();
  if (!is_aligned(table.bytes, geometry.cluster_bytes()) ||
      image_.allocator().is_beyond_high_water(
          {geometry.cluster_index(table.bytes), 1})) {
    return absl::DataLossError(absl::StrCat(
        "an L1 table names an L2 table at host offset ", table.bytes,
        ", which is not a multiple of the cluster size ",
        geometry.cluster_bytes(), " or lies beyond the end of the file"));
  }
  RunGatherer runs(visit);
  for (uint64_t at = 0; at < geometry.cluster_bytes();
       at += geometry.slice_bytes) {
    absl::StatusOr<SliceRef> slice =
        image_.l2_tables().get(HostOffset{table.bytes + at});
    if (!slice.ok()) return slice.status();
    std::vector<HostClusters> references;
    {
      MetadataReaderLock lock(&(*slice)->mutex);
      for (uint64_t i = 0; i < geometry.l2_entries_per_slice(); ++i) {
        const L2Entry entry = load_entry(*slice->get(), geometry, i);
        if (entry.raw() != 0) references.push_back(entry.references(geometry));
      }
    }
    for (const HostClusters& clusters : references) {
      absl::Status status = runs.add(clusters);
      if (!status.ok()) return status;
    }
  }
  absl::Status status = runs.finish();
  if (!status.ok()) return status;
  return visit({geometry.cluster_index(table.bytes), 1});
}

absl::Status Snapshots::for_each_reference(const L1Entries& entries,
                                           Visit visit) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    absl::Status status = visit_l2_table(l2_table_of(entry), visit);
    if (!status.ok()) return status;
    status = image_.rounds().write_back_if_crowded();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Snapshots::add_references(const L1Entries& entries) {
  uint64_t added = 0;
  absl::Status status =
      for_each_reference(entries, [&](HostClusters clusters) -> absl::Status {
        absl::Status one = image_.allocator().add_references(clusters);
        if (one.ok()) ++added;
        return one;
      });
  if (status.ok()) return status;
  // The same walk again, as far as it came; what cannot be undone is a leak.
  for_each_reference(entries, [&](HostClusters clusters) -> absl::Status {
    if (added == 0) return absl::CancelledError("");
    --added;
    image_.pending().add_durably_dropped(clusters);
    return absl::OkStatus();
  }).IgnoreError();
  image_.rounds().settle().IgnoreError();
  return status;
}

absl::Status Snapshots::drop_references(const L1Entries& entries) {
  return for_each_reference(entries,
                            [&](HostClusters clusters) -> absl::Status {
                              image_.pending().add_durably_dropped(clusters);
                              return image_.pending().count() < kDropsPerRound
                                         ? absl::OkStatus()
                                         : image_.rounds().flush();
                            });
}

// ---- COPIED -----------------------------------------------------------------

absl::Status Snapshots::update_copied_flags() {
  for (uint64_t i = 0; i < image_.l1().entry_count(); ++i) {
    if (image_.l1().l2_table(i).bytes == 0) continue;
    absl::Status status = update_copied_flags_of(i);
    if (status.ok()) status = image_.rounds().write_back_if_crowded();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Snapshots::settle_references() {
  absl::Status status;
  // Once more after an error: what is not done now, nobody does later.
  for (int attempt = 0; attempt < 2; ++attempt) {
    status = image_.rounds().settle();
    if (status.ok()) status = update_copied_flags();
    if (status.ok()) status = image_.rounds().settle();
    if (status.ok()) break;
  }
  return status;
}

absl::Status Snapshots::update_copied_flags_of(uint64_t l1_index) {
  const Geometry& geometry = image_.geometry();
  const HostOffset table = image_.l1().l2_table(l1_index);
  const absl::StatusOr<uint64_t> table_count =
      image_.allocator().refcount(geometry.cluster_index(table.bytes));
  if (!table_count.ok()) return table_count.status();
  image_.l1().set_own(l1_index, *table_count == 1);
  for (uint64_t at = 0; at < geometry.cluster_bytes();
       at += geometry.slice_bytes) {
    absl::StatusOr<SliceRef> slice =
        image_.l2_tables().get(HostOffset{table.bytes + at});
    if (!slice.ok()) return slice.status();
    // Nobody else changes entries; counting may read the file, without a lock.
    for (uint64_t i = 0; i < geometry.l2_entries_per_slice(); ++i) {
      L2Entry entry;
      {
        MetadataReaderLock lock(&(*slice)->mutex);
        entry = load_entry(*slice->get(), geometry, i);
      }
      if (entry.kind() == ClusterKind::kCompressed || !entry.has_host())
        continue;
      const absl::StatusOr<uint64_t> count = image_.allocator().refcount(
          geometry.cluster_index(entry.host().bytes));
      if (!count.ok()) return count.status();
      if ((*count == 1) == entry.copied()) continue;
      MetadataLock lock(&(*slice)->mutex);
      store_entry(slice->get(), geometry, i,
                  L2Entry(entry.raw() ^ kEntryCopied, entry.bitmap()));
    }
  }
  return absl::OkStatus();
}

// ---- Writing ----------------------------------------------------------------

absl::Status Snapshots::write_l1(const L1Entries& entries, HostOffset where) {
  std::vector<uint8_t> bytes(entries.size() * kL1EntryBytes);
  for (size_t i = 0; i < entries.size(); ++i)
    store_big64(&bytes[i * kL1EntryBytes], entries[i]);
  if (bytes.empty()) return absl::OkStatus();
  return image_.file().write(Purpose::kSnapshotUpdate, bytes.data(),
                             bytes.size(), where.bytes);
}

absl::Status Snapshots::write_header_fields(uint64_t offset, size_t count) {
  std::array<uint8_t, 12> fields;
  store_big32(fields.data(), static_cast<uint32_t>(count));
  store_big64(&fields[4], offset);
  static_assert(kSnapshotsOffsetOffset == kSnapshotCountOffset + 4);
  absl::Status status =
      image_.file().write(Purpose::kHeaderUpdate, fields.data(), fields.size(),
                          kSnapshotCountOffset);
  return status.ok() ? image_.file().flush() : status;
}

absl::Status Snapshots::switch_header(ByteRange place, size_t count) {
  absl::Status status = write_header_fields(place.offset, count);
  if (status.ok()) return status;
  // Which of the two the disk names now is unknown: make it the old one again,
  // or use neither.
  if (!write_header_fields(table_.offset, snapshots_.size()).ok()) {
    image_.corruption()
        .report(absl::StrCat("the header could not be written while the "
                             "snapshot table was replaced: ",
                             status.message()))
        .IgnoreError();
  }
  return status;
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
  const L1Entries entries = active_l1();
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
  status = write_l1(entries, {snapshot.l1_table_offset});
  bool counted = false;
  if (status.ok()) {
    status = add_references(entries);
    counted = status.ok();
  }
  if (status.ok()) status = update_copied_flags();
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
    return snapshot.info;
  }
  // Nothing names the new references.  Where even this fails there are leaks,
  // and flags that make writes go elsewhere for nothing.
  if (image_.corruption().is_set()) return status;
  if (counted) drop_references(entries).IgnoreError();
  image_.allocator().free_unpublished(l1);
  settle_references().IgnoreError();
  return status;
}

void Snapshots::remove_extents(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    image_.extents().remove(
        {l2_table_of(entry).bytes, image_.geometry().cluster_bytes()});
  }
}

absl::Status Snapshots::add_extents(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    const absl::Status status = image_.extents().add(
        MetadataKind::kL2Table,
        {l2_table_of(entry).bytes, image_.geometry().cluster_bytes()});
    if (!status.ok()) return image_.corruption().report(status.message());
  }
  return absl::OkStatus();
}

void Snapshots::forget_tables(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    image_.l2_tables().discard(l2_table_of(entry),
                               image_.geometry().cluster_bytes());
  }
}

absl::Status Snapshots::overwrite_active_l1(const L1Entries& old_entries,
                                            const L1Entries& new_entries) {
  absl::Status status = write_l1(new_entries, image_.l1().host());
  if (status.ok()) status = image_.file().flush();
  if (status.ok()) return status;
  if (!write_l1(old_entries, image_.l1().host()).ok() ||
      !image_.file().flush().ok()) {
    image_.corruption()
        .report(absl::StrCat("the L1 table could not be written: ",
                             status.message()))
        .IgnoreError();
  }
  return status;
}

absl::Status Snapshots::apply(absl::string_view name) {
  absl::Status status = image_.corruption().writes_allowed();
  if (!status.ok()) return status;
  const absl::StatusOr<size_t> index = find(name);
  if (!index.ok()) return index.status();
  const Snapshot& snapshot = snapshots_[*index];
  if (snapshot.info.disk_size_bytes != image_.geometry().size_bytes ||
      snapshot.l1_entry_count > image_.l1().entry_count()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the snapshot's disk has ", snapshot.info.disk_size_bytes,
        " bytes and ", snapshot.l1_entry_count, " L1 entries, the image ",
        image_.geometry().size_bytes, " and ", image_.l1().entry_count(),
        ": resize the image first"));
  }
  status = image_.rounds().settle();
  if (!status.ok()) return status;
  const absl::StatusOr<L1Entries> read = read_l1(snapshot);
  if (!read.ok()) return read.status();
  L1Entries entries = *read;
  for (uint64_t& entry : entries) entry &= kL1OffsetMask;  // all shared
  entries.resize(image_.l1().entry_count());
  const L1Entries old_entries = active_l1();

  status = add_references(entries);
  if (!status.ok()) return status;
  status = image_.rounds().settle();
  if (status.ok()) status = overwrite_active_l1(old_entries, entries);
  if (!status.ok()) {
    if (image_.corruption().writes_allowed().ok()) {
      drop_references(entries).IgnoreError();
      image_.rounds().settle().IgnoreError();
    }
    return status;
  }
  // Durable: the old tables belong to other snapshots, or to nobody.
  image_.l1().replace(entries);
  remove_extents(old_entries);
  const absl::Status dropped = drop_references(old_entries);
  forget_tables(old_entries);
  status = add_extents(entries);
  if (status.ok()) status = settle_references();
  return status.ok() ? dropped : status;
}

absl::Status Snapshots::remove(absl::string_view name) {
  absl::Status status = image_.corruption().writes_allowed();
  if (!status.ok()) return status;
  const absl::StatusOr<size_t> index = find(name);
  if (!index.ok()) return index.status();
  const Snapshot snapshot = snapshots_[*index];
  const absl::StatusOr<L1Entries> entries = read_l1(snapshot);
  if (!entries.ok()) return entries.status();
  status = image_.rounds().settle();
  if (!status.ok()) return status;
  std::vector<Snapshot> rest = snapshots_;
  rest.erase(rest.begin() + static_cast<ptrdiff_t>(*index));
  status = switch_to(std::move(rest));
  if (!status.ok()) return status;

  // From here on the snapshot is gone, whatever happens.
  const Geometry& geometry = image_.geometry();
  status = drop_references(*entries);
  const ByteRange l1 = l1_extent(snapshot);
  image_.extents().remove(l1);
  image_.pending().add_durably_dropped(
      {geometry.cluster_index(l1.offset), geometry.cluster_index(l1.length)});
  forget_tables(*entries);
  const absl::Status settled = settle_references();
  return settled.ok() ? status : settled;
}

}  // namespace spindle::qcow2

#include "formats/qcow2/table_references.h"

#include <algorithm>
#include <utility>

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

// ---- What tables refer to ---------------------------------------------------

TableReferences::L1Entries TableReferences::active_l1() const {
  L1Entries entries(image_.l1().entry_count());
  for (uint64_t i = 0; i < entries.size(); ++i)
    entries[i] = image_.l1().raw_entry(i);
  return entries;
}

absl::Status TableReferences::visit_l2_table(HostOffset table, Visit visit) {
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

absl::Status TableReferences::for_each_reference(const L1Entries& entries,
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

absl::Status TableReferences::add_references(const L1Entries& entries) {
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

absl::Status TableReferences::drop_references(const L1Entries& entries) {
  return for_each_reference(entries,
                            [&](HostClusters clusters) -> absl::Status {
                              image_.pending().add_durably_dropped(clusters);
                              return image_.pending().count() < kDropsPerRound
                                         ? absl::OkStatus()
                                         : image_.rounds().flush();
                            });
}

// ---- COPIED -----------------------------------------------------------------

absl::Status TableReferences::update_copied_flags() {
  for (uint64_t i = 0; i < image_.l1().entry_count(); ++i) {
    if (image_.l1().l2_table(i).bytes == 0) continue;
    absl::Status status = update_copied_flags_of(i);
    if (status.ok()) status = image_.rounds().write_back_if_crowded();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status TableReferences::settle_references() {
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

absl::Status TableReferences::update_copied_flags_of(uint64_t l1_index) {
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

// ---- L1 tables -------------------------------------------------------------

absl::Status TableReferences::write_l1(Purpose purpose,
                                       const L1Entries& entries,
                                       HostOffset where) {
  std::vector<uint8_t> bytes(entries.size() * kL1EntryBytes);
  for (size_t i = 0; i < entries.size(); ++i)
    store_big64(&bytes[i * kL1EntryBytes], entries[i]);
  if (bytes.empty()) return absl::OkStatus();
  return image_.file().write(purpose, bytes.data(), bytes.size(), where.bytes);
}

absl::StatusOr<TableReferences::L1Entries> TableReferences::read_l1(
    HostOffset where, uint64_t entry_count) {
  std::vector<uint8_t> bytes(entry_count * kL1EntryBytes);
  if (!bytes.empty()) {
    absl::Status status = image_.file().read(Purpose::kL1Load, bytes.data(),
                                             bytes.size(), where.bytes);
    if (!status.ok()) return status;
  }
  L1Entries entries(entry_count);
  for (size_t i = 0; i < entries.size(); ++i)
    entries[i] = load_big64(&bytes[i * kL1EntryBytes]);
  return entries;
}

void TableReferences::remove_extents(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    image_.extents().remove(
        {l2_table_of(entry).bytes, image_.geometry().cluster_bytes()});
  }
}

absl::Status TableReferences::add_extents(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    const absl::Status status = image_.extents().add(
        MetadataKind::kL2Table,
        {l2_table_of(entry).bytes, image_.geometry().cluster_bytes()});
    if (!status.ok()) return image_.corruption().report(status.message());
  }
  return absl::OkStatus();
}

void TableReferences::forget_tables(const L1Entries& entries) {
  for (const uint64_t entry : entries) {
    if (l2_table_of(entry).bytes == 0) continue;
    image_.l2_tables().discard(l2_table_of(entry),
                               image_.geometry().cluster_bytes());
  }
}

absl::Status TableReferences::overwrite_active_l1(
    uint64_t first, const L1Entries& old_entries,
    const L1Entries& new_entries) {
  const HostOffset where{image_.l1().host().bytes + first * kL1EntryBytes};
  absl::Status status = write_l1(Purpose::kL1Update, new_entries, where);
  if (status.ok()) status = image_.file().flush();
  if (status.ok()) return status;
  if (!write_l1(Purpose::kL1Update, old_entries, where).ok() ||
      !image_.file().flush().ok()) {
    image_.corruption()
        .report(absl::StrCat("the L1 table could not be written: ",
                             status.message()))
        .IgnoreError();
  }
  return status;
}

absl::Status TableReferences::drop_active_tables(uint64_t first) {
  L1Entries old_entries = active_l1();
  if (first >= old_entries.size()) return absl::OkStatus();
  old_entries.erase(old_entries.begin(),
                    old_entries.begin() + static_cast<ptrdiff_t>(first));
  if (std::all_of(old_entries.begin(), old_entries.end(),
                  [](uint64_t entry) { return entry == 0; })) {
    return absl::OkStatus();
  }
  const L1Entries none(old_entries.size());
  absl::Status status = overwrite_active_l1(first, old_entries, none);
  if (!status.ok()) return status;
  // Durable: what they named belongs to snapshots, or to nobody.
  image_.l1().clear_from(first);
  remove_extents(old_entries);
  status = drop_references(old_entries);
  forget_tables(old_entries);
  return status;
}

}  // namespace spindle::qcow2

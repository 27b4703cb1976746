#include "formats/qcow2/zero_expansion.h"

#include <cstdint>
#include <utility>

#include "absl/container/btree_set.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/l2_slice.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {
namespace {

// Collects L2 tables, each once, in order of appearance.
class TableList {
 public:
  explicit TableList(Image* image) : image_(*image) {}

  absl::Status add(uint64_t l1_entry, uint64_t l1_index) {
    const HostOffset table{l1_entry & kL1OffsetMask};
    if (table.bytes == 0 || !seen_.insert(table.bytes).second)
      return absl::OkStatus();
    const Geometry& geometry = image_.geometry();
    if (!is_aligned(table.bytes, geometry.cluster_bytes()) ||
        image_.allocator().is_beyond_high_water(
            {geometry.cluster_index(table.bytes), 1})) {
      return absl::DataLossError(absl::StrCat(
          "an L1 table names an L2 table at host offset ", table.bytes,
          ", which is not a multiple of the cluster size ",
          geometry.cluster_bytes(), " or lies beyond the end of the file"));
    }
    tables_.push_back({table, {l1_index * geometry.l1_entry_coverage_bytes()}});
    return absl::OkStatus();
  }
  std::vector<ListedTable> take() { return std::move(tables_); }

 private:
  Image& image_;
  absl::btree_set<uint64_t> seen_;
  std::vector<ListedTable> tables_;
};

absl::Status add_tables_of(Image* image, const Snapshot& snapshot,
                           TableList* list) {
  if (snapshot.l1_entry_count == 0) return absl::OkStatus();
  ByteChannel& file = image->file();
  absl::Status status = check_snapshot_l1(
      snapshot, image->geometry().cluster_bytes(), file.length_bytes());
  if (!status.ok()) return status;
  std::vector<uint8_t> bytes(uint64_t{snapshot.l1_entry_count} * kL1EntryBytes);
  status = file.read(Purpose::kL1Load, bytes.data(), bytes.size(),
                     snapshot.l1_table_offset);
  for (uint64_t i = 0; status.ok() && i < snapshot.l1_entry_count; ++i)
    status = list->add(load_big64(&bytes[i * kL1EntryBytes]), i);
  return status;
}

// Calls `visit` for each slice of `table`, with where the guest has what its
// first entry maps.
absl::Status for_each_slice(
    Image* image, const ListedTable& table,
    absl::FunctionRef<absl::Status(Slice*, GuestOffset)> visit) {
  const Geometry& geometry = image->geometry();
  for (uint64_t at = 0; at < geometry.cluster_bytes();
       at += geometry.slice_bytes) {
    absl::StatusOr<SliceRef> slice =
        image->l2_tables().get(HostOffset{table.host.bytes + at});
    if (!slice.ok()) return slice.status();
    const uint64_t entries_before =
        at / geometry.slice_bytes * geometry.l2_entries_per_slice();
    absl::Status status =
        visit(slice->get(),
              {table.guest.bytes + geometry.cluster_offset(entries_before)});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

class ZeroExpansion {
 public:
  explicit ZeroExpansion(Image* image)
      : image_(*image), geometry_(image->geometry()) {}

  absl::Status expand_table(const ListedTable& table);

 private:
  absl::Status expand_slice(Slice* slice, GuestOffset first);
  // What becomes of a zero cluster's entry.
  absl::StatusOr<L2Entry> expand(L2Entry old, GuestOffset guest);
  absl::StatusOr<L2Entry> expand_to_new_cluster(GuestOffset guest);
  absl::Status fill_with_zeroes(HostClusters cluster, GuestOffset guest);
  L2Entry entry_of(HostClusters cluster) const;

  Image& image_;
  const Geometry& geometry_;
  // How many L1 tables name the table: as many references its entries count.
  uint64_t table_references_ = 1;
};

absl::Status ZeroExpansion::expand_table(const ListedTable& table) {
  const absl::StatusOr<uint64_t> references =
      image_.allocator().refcount(geometry_.cluster_index(table.host.bytes));
  if (!references.ok()) return references.status();
  if (*references == 0) {
    return image_.corruption().report(
        absl::StrCat("the L2 table at host offset ", table.host.bytes,
                     " is in use but has refcount 0"));
  }
  table_references_ = *references;
  return for_each_slice(&image_, table,
                        [this](Slice* slice, GuestOffset first) {
                          return expand_slice(slice, first);
                        });
}

absl::Status ZeroExpansion::expand_slice(Slice* slice, GuestOffset first) {
  for (size_t i = 0; i < geometry_.l2_entries_per_slice(); ++i) {
    L2Entry old;
    {
      MetadataReaderLock lock(&slice->mutex);
      old = load_entry(*slice, geometry_, i);
    }
    const ClusterKind kind = old.kind();
    if (kind != ClusterKind::kZeroPlain && kind != ClusterKind::kZeroAllocated)
      continue;
    const absl::StatusOr<L2Entry> expanded =
        expand(old, {first.bytes + geometry_.cluster_offset(i)});
    if (!expanded.ok()) return expanded.status();
    {
      MetadataLock lock(&slice->mutex);
      slice->note_new_mapping();
      store_entry(slice, geometry_, i, *expanded);
    }
    if (!old.has_host() || expanded->host() == old.host()) continue;
    for (uint64_t n = 0; n < table_references_; ++n)
      image_.pending().add_dropped(old.references(geometry_));
  }
  return absl::OkStatus();
}

L2Entry ZeroExpansion::entry_of(HostClusters cluster) const {
  const HostOffset host{geometry_.cluster_offset(cluster.first)};
  return table_references_ == 1 ? L2Entry::normal(host) : L2Entry(host.bytes);
}

absl::StatusOr<L2Entry> ZeroExpansion::expand(L2Entry old, GuestOffset guest) {
  if (!old.has_host()) {
    // No entry says "zeroes" as well.
    if (image_.backing() == nullptr && image_.header().backing_filename.empty())
      return L2Entry();
    return expand_to_new_cluster(guest);
  }
  const HostClusters cluster = old.references(geometry_);
  const absl::Status legal = image_.data_clusters().check_place(
      {geometry_.cluster_offset(cluster.first), geometry_.cluster_bytes()});
  if (!legal.ok()) return image_.corruption().report(legal.message());
  const absl::StatusOr<uint64_t> references =
      image_.allocator().refcount(cluster.first);
  if (!references.ok()) return references.status();
  // Another table may name the cluster for what it holds.
  if (*references > table_references_) return expand_to_new_cluster(guest);
  absl::Status status = fill_with_zeroes(cluster, guest);
  if (!status.ok()) return status;
  return entry_of(cluster);
}

absl::StatusOr<L2Entry> ZeroExpansion::expand_to_new_cluster(
    GuestOffset guest) {
  const absl::StatusOr<Allocator::Allocation> allocation =
      image_.allocator().allocate(1);
  if (!allocation.ok()) return allocation.status();
  const HostClusters cluster = allocation->clusters;
  absl::Status status;
  uint64_t counted = 1;
  for (; status.ok() && counted < table_references_; ++counted)
    status = image_.allocator().add_references(cluster);
  image_.allocator().note_published(cluster);
  if (status.ok() &&
      (!allocation->reads_as_zeroes || image_.transfer().is_encrypted())) {
    status = fill_with_zeroes(cluster, guest);
  }
  if (status.ok()) return entry_of(cluster);
  while (counted-- > 0) image_.allocator().free_unpublished(cluster);
  return status;
}

absl::Status ZeroExpansion::fill_with_zeroes(HostClusters cluster,
                                             GuestOffset guest) {
  if (image_.transfer().is_encrypted()) {
    std::vector<uint8_t> zeroes(geometry_.cluster_bytes());
    return image_.transfer().write(
        Purpose::kPwritevZero, IoVector(zeroes.data(), zeroes.size()), guest,
        {geometry_.cluster_offset(cluster.first)});
  }
  return image_.data().write_zeroes(
      Purpose::kPwritevZero,
      {geometry_.cluster_offset(cluster.first), geometry_.cluster_bytes()}, {});
}

}  // namespace

absl::StatusOr<std::vector<ListedTable>> list_l2_tables(Image* image,
                                                        const Header& header) {
  TableList list(image);
  for (uint64_t i = 0; i < image->l1().entry_count(); ++i) {
    absl::Status status = list.add(image->l1().raw_entry(i), i);
    if (!status.ok()) return status;
  }
  SnapshotTableReader reader(&image->file(), header);
  while (!reader.at_end()) {
    const absl::StatusOr<Snapshot> snapshot = reader.next();
    if (!snapshot.ok()) return snapshot.status();
    absl::Status status = add_tables_of(image, *snapshot, &list);
    if (!status.ok()) return status;
  }
  return list.take();
}

absl::StatusOr<bool> have_compressed_clusters(
    Image* image, const std::vector<ListedTable>& tables) {
  const Geometry& geometry = image->geometry();
  bool found = false;
  for (const ListedTable& table : tables) {
    absl::Status status = for_each_slice(
        image, table, [&](Slice* slice, GuestOffset) -> absl::Status {
          MetadataReaderLock lock(&slice->mutex);
          for (size_t i = 0; i < geometry.l2_entries_per_slice(); ++i) {
            found |= load_entry(*slice, geometry, i).kind() ==
                     ClusterKind::kCompressed;
          }
          return absl::OkStatus();
        });
    if (!status.ok()) return status;
    if (found) return true;
  }
  return false;
}

absl::Status expand_zero_clusters(Image* image,
                                  const std::vector<ListedTable>& tables,
                                  const AmendProgress& progress) {
  ZeroExpansion expansion(image);
  for (size_t i = 0; i < tables.size(); ++i) {
    absl::Status status = progress.interrupted();
    if (status.ok()) status = expansion.expand_table(tables[i]);
    if (status.ok()) status = image->rounds().write_back_if_crowded();
    if (!status.ok()) return status;
    progress.say(i, tables.size());
  }
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

#include "formats/qcow2/image_size.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/sector.h"
#include "formats/qcow2/header_switch.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

std::vector<uint8_t> l1_fields(HostOffset l1, uint64_t entry_count) {
  static_assert(kL1TableOffsetOffset == kL1SizeOffset + 4);
  std::vector<uint8_t> bytes(12);
  store_big32(bytes.data(), static_cast<uint32_t>(entry_count));
  store_big64(&bytes[4], l1.bytes);
  return bytes;
}

std::vector<uint8_t> size_field(uint64_t size_bytes) {
  std::vector<uint8_t> bytes(8);
  store_big64(bytes.data(), size_bytes);
  return bytes;
}

absl::Status check_l1_size(uint64_t entry_count) {
  constexpr uint64_t kMaxEntries = kMaxL1TableBytes / kL1EntryBytes;
  if (entry_count <= kMaxEntries) return absl::OkStatus();
  return with_qemu_words(absl::ResourceExhaustedError(absl::StrCat(
                             "the L1 table would need ", entry_count,
                             " entries: the limit is ", kMaxEntries)),
                         "Failed to grow the L1 table: File too large");
}

// Writes the present table, and zeroes behind it, to `clusters`.
absl::Status write_l1(Image* image, HostClusters clusters,
                      uint64_t entry_count) {
  const L1Table& l1 = image->l1();
  std::vector<uint8_t> bytes(entry_count * kL1EntryBytes);
  for (uint64_t i = 0; i < l1.entry_count(); ++i)
    store_big64(&bytes[i * kL1EntryBytes], l1.raw_entry(i));
  return image->file().write(Purpose::kL1Update, bytes.data(), bytes.size(),
                             image->geometry().cluster_offset(clusters.first));
}

}  // namespace

absl::Status check_size(const Geometry& geometry, uint64_t size_bytes) {
  if (!is_sector_aligned(size_bytes)) {
    constexpr char kWords[] = "The new size must be a multiple of 512";
    return with_qemu_words(absl::InvalidArgumentError(
                               absl::StrCat(kWords, ", and is ", size_bytes)),
                           kWords);
  }
  if (size_bytes > kMaxSizeBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the new size is ", size_bytes, ": the limit is ", kMaxSizeBytes));
  }
  return check_l1_size(geometry.l1_entries_for(size_bytes));
}

absl::Status grow_l1(Image* image, uint64_t entry_count) {
  L1Table& l1 = image->l1();
  if (entry_count <= l1.entry_count()) return absl::OkStatus();
  absl::Status status = check_l1_size(entry_count);
  if (status.ok()) status = image->rounds().settle();
  if (!status.ok()) return status;

  const Geometry& geometry = image->geometry();
  const absl::StatusOr<Allocator::Allocation> allocation =
      image->allocator().allocate(
          geometry.clusters_for(entry_count * kL1EntryBytes));
  if (!allocation.ok()) return allocation.status();
  const HostClusters clusters = allocation->clusters;
  image->allocator().note_published(clusters);
  const HostOffset place{geometry.cluster_offset(clusters.first)};
  status = write_l1(image, clusters, entry_count);
  if (status.ok()) status = image->rounds().settle();
  if (status.ok()) {
    status =
        switch_header_fields(&image->file(), &image->corruption(),
                             {.offset = kL1SizeOffset,
                              .before = l1_fields(l1.host(), l1.entry_count()),
                              .after = l1_fields(place, entry_count),
                              .what = "the L1 table grew"});
  }
  if (!status.ok()) {
    // Where the header may name the new table, that stays counted.
    if (!image->corruption().is_set())
      image->allocator().free_unpublished(clusters);
    return status;
  }
  const HostClusters old{
      geometry.cluster_index(l1.host().bytes),
      geometry.clusters_for(l1.entry_count() * kL1EntryBytes)};
  l1.grow(place, entry_count);
  if (old.count != 0) {
    image->extents().remove({geometry.cluster_offset(old.first),
                             geometry.cluster_offset(old.count)});
    image->pending().add_durably_dropped(old);
  }
  status = image->extents().add(
      MetadataKind::kL1Table,
      {place.bytes, geometry.cluster_offset(clusters.count)});
  return status.ok() ? status : image->corruption().report(status.message());
}

absl::Status switch_size(Image* image, uint64_t size_bytes) {
  const uint64_t old_size = image->geometry().size_bytes;
  if (size_bytes == old_size) return absl::OkStatus();
  absl::Status status =
      switch_header_fields(&image->file(), &image->corruption(),
                           {.offset = kSizeOffset,
                            .before = size_field(old_size),
                            .after = size_field(size_bytes),
                            .what = "the disk's size changed"});
  if (status.ok()) image->set_size(size_bytes);
  return status;
}

absl::Status give_up_unused_space(Image* image) {
  absl::Status status = image->rounds().settle();
  if (status.ok()) status = image->allocator().drop_unused_blocks();
  if (status.ok()) status = image->rounds().settle();
  return status.ok() ? image->allocator().trim_file() : status;
}

}  // namespace spindle::qcow2

#include "formats/qcow2/bitmap_storage.h"

#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

absl::Status bad_bitmap(const BitmapEntry& bitmap, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("qcow2: bitmap '", bitmap.name, "': ", what));
}

void add_run(HostClusters run, std::vector<HostClusters>* runs) {
  if (!runs->empty() && runs->back().end() == run.first) {
    runs->back().count += run.count;
  } else {
    runs->push_back(run);
  }
}

class Reader {
 public:
  Reader(ByteChannel* file, uint64_t cluster_bytes, const BitmapEntry& bitmap)
      : file_(*file),
        cluster_bytes_(cluster_bytes),
        file_end_(align_up(file->length_bytes(), cluster_bytes)),
        bitmap_(bitmap) {}

  // Raw entries.
  absl::StatusOr<std::vector<uint64_t>> read_table();
  absl::Status check_entry(uint64_t index, uint64_t entry) const;
  absl::Status read_bits(const std::vector<uint64_t>& table, DirtyBitmap* bits);

 private:
  ByteChannel& file_;
  const uint64_t cluster_bytes_;
  const uint64_t file_end_;
  const BitmapEntry& bitmap_;
};

absl::StatusOr<std::vector<uint64_t>> Reader::read_table() {
  const uint64_t length =
      uint64_t{bitmap_.table_entry_count} * kBitmapTableEntryBytes;
  if (bitmap_.table_offset > file_end_ ||
      length > file_end_ - bitmap_.table_offset) {
    return bad_bitmap(
        bitmap_,
        absl::StrCat("its table at ", bitmap_.table_offset, ", ", length,
                     " bytes, ends beyond the file's ", file_.length_bytes()));
  }
  std::vector<uint8_t> bytes(length);
  absl::Status status = file_.read(Purpose::kBitmapLoad, bytes.data(),
                                   bytes.size(), bitmap_.table_offset);
  if (!status.ok()) return status;
  std::vector<uint64_t> table(bitmap_.table_entry_count);
  for (uint64_t i = 0; i < table.size(); ++i)
    table[i] = load_big64(&bytes[i * kBitmapTableEntryBytes]);
  return table;
}

absl::Status Reader::check_entry(uint64_t index, uint64_t entry) const {
  const uint64_t offset = entry & kBitmapTableOffsetMask;
  if (is_valid_bitmap_table_entry(entry, cluster_bytes_) &&
      offset < file_end_) {
    return absl::OkStatus();
  }
  return bad_bitmap(
      bitmap_,
      absl::StrCat("entry ", index, " of its table is ", entry,
                   ": reserved bits are set, or the offset is not a multiple "
                   "of the cluster size ",
                   cluster_bytes_, " below the file's end at ", file_end_));
}

absl::Status Reader::read_bits(const std::vector<uint64_t>& table,
                               DirtyBitmap* bits) {
  const uint64_t granules = cluster_bytes_ * 8;
  std::vector<uint8_t> bytes(cluster_bytes_);
  for (uint64_t i = 0; i < table.size(); ++i) {
    const uint64_t first = i * granules;
    if (first >= bits->granule_count()) break;
    const uint64_t offset = table[i] & kBitmapTableOffsetMask;
    if (offset != 0) {
      absl::Status status =
          file_.read(Purpose::kBitmapLoad, bytes.data(), bytes.size(), offset);
      if (!status.ok()) return status;
      bits->load_bits(first, bytes);
    } else if ((table[i] & kBitmapTableAllOnes) != 0) {
      bits->load_ones(first, granules);
    }
  }
  return absl::OkStatus();
}

class Writer {
 public:
  Writer(Image* image, const DirtyBitmap& bits)
      : image_(*image),
        cluster_bytes_(image->geometry().cluster_bytes()),
        bits_(bits) {}

  absl::Status write();
  BitmapPlace place() && { return std::move(place_); }
  const BitmapPlace& place() const& { return place_; }

 private:
  absl::StatusOr<uint64_t> write_at_new_place(std::vector<uint8_t>* bytes);

  Image& image_;
  const uint64_t cluster_bytes_;
  const DirtyBitmap& bits_;
  BitmapPlace place_;
};

absl::StatusOr<uint64_t> Writer::write_at_new_place(
    std::vector<uint8_t>* bytes) {
  const Geometry& geometry = image_.geometry();
  const absl::StatusOr<Allocator::Allocation> allocation =
      image_.allocator().allocate(geometry.clusters_for(bytes->size()));
  if (!allocation.ok()) return allocation.status();
  add_run(allocation->clusters, &place_.clusters);
  image_.allocator().note_published(allocation->clusters);
  const uint64_t offset = geometry.cluster_offset(allocation->clusters.first);
  absl::Status status = image_.file().write(
      Purpose::kBitmapUpdate, bytes->data(), bytes->size(), offset);
  if (!status.ok()) return status;
  return offset;
}

absl::Status Writer::write() {
  const uint64_t entries = bitmap_table_entries_for(
      bits_.length_bytes(),
      static_cast<uint32_t>(std::countr_zero(bits_.granularity_bytes())),
      cluster_bytes_);
  // A disk of no length has a table all the same.
  place_.table_entry_count =
      static_cast<uint32_t>(std::max<uint64_t>(entries, 1));
  std::vector<uint8_t> table(place_.table_entry_count * kBitmapTableEntryBytes);
  std::vector<uint8_t> bytes(cluster_bytes_);
  // What is all zeroes is not stored.
  const uint64_t covered = cluster_bytes_ * 8 * bits_.granularity_bytes();
  for (uint64_t at = 0; at < bits_.length_bytes();) {
    const DirtyBitmap::Run run = bits_.run_at(at);
    if (!run.dirty) {
      at = run.range.end();
      continue;
    }
    const uint64_t i = at / covered;
    bits_.store_bits(i * cluster_bytes_ * 8, absl::MakeSpan(bytes));
    const absl::StatusOr<uint64_t> offset = write_at_new_place(&bytes);
    if (!offset.ok()) return offset.status();
    store_big64(&table[i * kBitmapTableEntryBytes], *offset);
    at = (i + 1) * covered;
  }
  const absl::StatusOr<uint64_t> offset = write_at_new_place(&table);
  if (!offset.ok()) return offset.status();
  place_.table_offset = *offset;
  return absl::OkStatus();
}

}  // namespace

uint64_t BitmapPlace::cluster_count() const {
  uint64_t count = 0;
  for (const HostClusters& run : clusters) count += run.count;
  return count;
}

absl::StatusOr<BitmapPlace> read_bitmap(ByteChannel* file,
                                        uint64_t cluster_bytes,
                                        const BitmapEntry& entry,
                                        uint64_t max_clusters,
                                        DirtyBitmap* bits) {
  Reader reader(file, cluster_bytes, entry);
  const absl::StatusOr<std::vector<uint64_t>> table = reader.read_table();
  if (!table.ok()) return table.status();
  BitmapPlace place{entry.table_offset, entry.table_entry_count, {}};
  add_run(
      {entry.table_offset / cluster_bytes,
       divide_round_up(table->size() * kBitmapTableEntryBytes, cluster_bytes)},
      &place.clusters);
  for (uint64_t i = 0; i < table->size(); ++i) {
    absl::Status status = reader.check_entry(i, (*table)[i]);
    if (!status.ok()) return status;
    const uint64_t offset = (*table)[i] & kBitmapTableOffsetMask;
    if (offset != 0) add_run({offset / cluster_bytes, 1}, &place.clusters);
  }
  if (place.cluster_count() > max_clusters) {
    return bad_bitmap(entry, absl::StrCat("it and those before it take more "
                                          "clusters than the file has, ",
                                          max_clusters, " of them here"));
  }
  if (bits == nullptr) return place;
  absl::Status status = reader.read_bits(*table, bits);
  if (!status.ok()) return status;
  return place;
}

absl::StatusOr<BitmapPlace> write_bitmap(Image* image,
                                         const DirtyBitmap& bits) {
  Writer writer(image, bits);
  absl::Status status = writer.write();
  if (status.ok()) return std::move(writer).place();
  discard_bitmap(image, writer.place());
  return status;
}

void discard_bitmap(Image* image, const BitmapPlace& place) {
  for (const HostClusters& run : place.clusters)
    image->allocator().free_unpublished(run);
}

}  // namespace spindle::qcow2

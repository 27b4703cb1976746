#include "formats/qcow/image.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"

namespace spindle::qcow {
namespace {

// Inflated clusters that are kept; enough for a few sequential readers.
constexpr size_t kInflatedCopies = 8;

Geometry geometry_of(const Header& header, uint32_t slice_bytes) {
  Geometry geometry;
  geometry.cluster_bits = header.cluster_bits;
  geometry.l2_bits = header.l2_bits;
  geometry.slice_bytes = slice_bytes;
  geometry.size_bytes = header.disk_bytes();
  return geometry;
}

}  // namespace

Image::Image(std::shared_ptr<BlockDriver> file,
             std::shared_ptr<BlockDriver> backing,
             const crypto::EncryptedTransfer* encrypted, const Header& header,
             const RuntimeOptions& options, LogSink log)
    : header_(header),
      geometry_(geometry_of(header, options.slice_bytes)),
      file_(std::move(file)),
      transfer_(&file_, encrypted, SectorNumbering::kGuest),
      backing_(backing == nullptr
                   ? nullptr
                   : std::make_unique<ByteChannel>(std::move(backing))),
      corruption_("qcow", /*mark=*/nullptr, std::move(log)),
      first_writes_(&geometry_),
      inflated_(kInflatedCopies),
      l2_tables_(&file_, Purpose::kL2Load, options.slice_bytes,
                 options.l2_cache_bytes),
      l1_(HostOffset{header.l1_table_offset}, header.l1_entry_count(), {}),
      allocator_(geometry_.cluster_bytes(), file_.length_bytes(), &extents_),
      rounds_({&file_, &l2_tables_, &l1_, &allocator_}),
      map_({&geometry_, &l1_, &l2_tables_, &allocator_, &corruption_, &file_,
            &extents_}) {}

absl::StatusOr<std::unique_ptr<Image>> Image::open(
    std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
    const crypto::EncryptedTransfer* encrypted, const Header& header,
    const RuntimeOptions& options, LogSink log) {
  // Not through make_unique: the constructor is private.
  std::unique_ptr<Image> image(new Image(std::move(file), std::move(backing),
                                         encrypted, header, options,
                                         std::move(log)));
  absl::Status status = image->l1_.load(&image->file_);
  if (!status.ok()) return status;
  return image;
}

absl::Status Image::prepare_for_writing() {
  allocator_.note_file_end(file_.length_bytes());
  if (prepared_for_writing_) return absl::OkStatus();
  // An earlier attempt may have failed half way.
  extents_.clear();
  absl::Status status = extents_.add(MetadataKind::kHeader, {0, kHeaderBytes});
  if (status.ok() && !header_.backing_filename.empty()) {
    status = extents_.add(MetadataKind::kHeader, {header_.backing_file_offset,
                                                  header_.backing_file_size});
  }
  if (status.ok()) {
    status = extents_.add(MetadataKind::kL1Table,
                          {header_.l1_table_offset, header_.l1_table_bytes()});
  }
  for (uint64_t i = 0; status.ok() && i < l1_.entry_count(); ++i) {
    const HostOffset table = l1_.l2_table(i);
    if (table.bytes == 0) continue;
    status = map_.check_table(i, table);
    if (status.ok()) {
      status = extents_.add(MetadataKind::kL2Table,
                            {table.bytes, geometry_.l2_table_bytes()});
    }
  }
  prepared_for_writing_ = status.ok();
  return status;
}

}  // namespace spindle::qcow

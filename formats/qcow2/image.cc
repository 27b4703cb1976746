#include "formats/qcow2/image.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

// Inflated clusters that are kept; enough for a few sequential readers.
constexpr size_t kInflatedCopies = 8;

std::unique_ptr<ByteChannel> channel_to(std::shared_ptr<BlockDriver> driver) {
  return driver == nullptr ? nullptr
                           : std::make_unique<ByteChannel>(std::move(driver));
}

Geometry geometry_of(const Header& header, uint32_t slice_bytes) {
  Geometry geometry;
  geometry.version = header.version;
  geometry.cluster_bits = header.cluster_bits;
  geometry.refcount_order = header.refcount_order;
  geometry.slice_bytes = slice_bytes;
  geometry.size_bytes = header.size_bytes;
  geometry.extended_l2 = header.extended_l2();
  geometry.external_data = header.has_data_file();
  return geometry;
}

DataTransfer transfer_between(ByteChannel* channel,
                              const Encryption* encryption) {
  if (encryption == nullptr) return DataTransfer(channel);
  return {channel, &encryption->transfer(), encryption->numbering()};
}

}  // namespace

Image::Image(std::shared_ptr<BlockDriver> file,
             std::shared_ptr<BlockDriver> backing, const Header& header,
             const RuntimeOptions& options, LogSink log,
             std::shared_ptr<BlockDriver> data_file,
             const Encryption* encryption)
    : header_(header),
      options_(options),
      geometry_(geometry_of(header, options.slice_bytes)),
      file_(std::move(file)),
      backing_(channel_to(std::move(backing))),
      external_data_(channel_to(std::move(data_file))),
      corrupt_bit_(&file_, header.version >= kVersion3,
                   header.incompatible_features),
      corruption_(
          "qcow2", [this] { return corrupt_bit_.set(); }, std::move(log)),
      first_writes_(&geometry_),
      inflated_(kInflatedCopies),
      l2_tables_(&file_, Purpose::kL2Load, options.slice_bytes,
                 options.l2_cache_bytes),
      refblocks_(&file_, Purpose::kRefblockLoad, options.slice_bytes,
                 options.refcount_cache_bytes),
      l1_(HostOffset{header.l1_table_offset}, header.l1_entry_count,
          {.offset_mask = kL1OffsetMask, .own_flag = kEntryCopied}),
      allocator_(
          {&geometry_, &file_, &refblocks_, &in_flight_, &pending_, &extents_,
           &corruption_, [this] { return rounds_.flush(); },
           [this](HostClusters clusters) { inflated_.discard(clusters); }},
          {options.reuse, options.punch_holes,
           file_.child().capabilities().has(Capability::kGrows)}),
      data_clusters_(
          {&geometry_, &file_, external_data_.get(), &allocator_, &extents_},
          {header.data_file_is_raw(), options.punch_holes}),
      transfer_(transfer_between(&data_clusters_.channel(), encryption)),
      rounds_({&file_, external_data_.get(), &l2_tables_, &refblocks_, &l1_,
               &allocator_, &pending_, &kept_discards_}),
      map_({&geometry_, &l1_, &l2_tables_, &allocator_, &in_flight_,
            &corruption_, &file_, &extents_, &pending_}),
      kept_discards_(
          {&geometry_, &first_writes_, &map_, &in_flight_, &data_clusters_}) {}

absl::StatusOr<std::unique_ptr<Image>> Image::open(
    std::shared_ptr<BlockDriver> file, std::shared_ptr<BlockDriver> backing,
    const Header& header, const RuntimeOptions& options, LogSink log,
    std::shared_ptr<BlockDriver> data_file, const Encryption* encryption) {
  // Not through make_unique: the constructor is private.
  std::unique_ptr<Image> image(new Image(std::move(file), std::move(backing),
                                         header, options, std::move(log),
                                         std::move(data_file), encryption));
  image->allocator_.note_file_end();
  absl::Status status = image->l1_.load(&image->file_);
  if (!status.ok()) return status;
  return image;
}

bool Image::has_backing_at(GuestOffset guest) const {
  // Behind the image's own end, where vmstate lies, nothing shows through.
  return backing_ != nullptr &&
         guest.bytes < std::min(backing_->length_bytes(), geometry_.size_bytes);
}

void Image::set_cache_sizes(const RuntimeOptions& options) {
  l2_tables_.set_capacity(options.l2_cache_bytes);
  refblocks_.set_capacity(options.refcount_cache_bytes);
}

absl::Status Image::prepare_for_writing() {
  if (prepared_for_writing_) return absl::OkStatus();
  absl::Status status =
      allocator_.load(HostOffset{header_.refcount_table_offset},
                      header_.refcount_table_clusters);
  if (!status.ok()) return status;
  // An earlier attempt may have failed half way.
  extents_.clear();
  status = enter_extents();
  if (!status.ok()) return status;
  const uint64_t kept = header_.autoclear_features & kAutoclearKnown;
  if (header_.autoclear_features != kept) {
    // Whoever set the others would trust what this writer does not maintain.
    std::array<uint8_t, 8> bytes{};
    store_big64(bytes.data(), kept);
    status = file_.write(Purpose::kHeaderUpdate, bytes.data(), bytes.size(),
                         kAutoclearFeaturesOffset);
    if (!status.ok()) return status;
  }
  corrupt_bit_.allow();
  prepared_for_writing_ = true;
  return absl::OkStatus();
}

absl::Status Image::enter_extents() {
  const uint64_t cluster_bytes = geometry_.cluster_bytes();
  const auto add = [&](MetadataKind kind, uint64_t offset, uint64_t bytes) {
    return extents_.add(kind, {offset, align_up(bytes, cluster_bytes)});
  };
  absl::Status status = add(MetadataKind::kHeader, 0, cluster_bytes);
  if (status.ok()) {
    status = add(MetadataKind::kL1Table, header_.l1_table_offset,
                 header_.l1_table_bytes());
  }
  if (status.ok()) {
    status = add(MetadataKind::kRefcountTable, header_.refcount_table_offset,
                 header_.refcount_table_bytes());
  }
  const absl::StatusOr<std::optional<ByteRange>> luks =
      find_luks_header(header_);
  if (status.ok()) status = luks.status();
  if (status.ok() && luks->has_value()) {
    status =
        add(MetadataKind::kEncryptionHeader, (*luks)->offset, (*luks)->length);
  }
  for (HostOffset block : allocator_.refcount_blocks()) {
    if (!status.ok()) return status;
    status = add(MetadataKind::kRefcountBlock, block.bytes, cluster_bytes);
  }
  for (uint64_t i = 0; status.ok() && i < l1_.entry_count(); ++i) {
    const HostOffset table = l1_.l2_table(i);
    if (table.bytes == 0) continue;
    if (!is_aligned(table.bytes, cluster_bytes) ||
        table.bytes >= file_.length_bytes()) {
      return absl::DataLossError(absl::StrCat(
          "L1 entry ", i, " names an L2 table at host offset ", table.bytes,
          ", which is not a multiple of the cluster size ", cluster_bytes,
          " or not below the file's length ", file_.length_bytes()));
    }
    status = add(MetadataKind::kL2Table, table.bytes, cluster_bytes);
  }
  return status;
}

}  // namespace spindle::qcow2

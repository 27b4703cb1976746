#include "formats/qcow2/bitmap_directory.h"

#include <array>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {
namespace {

absl::Status bad_directory(absl::string_view field, uint64_t value) {
  return absl::DataLossError(
      absl::StrCat("qcow2: bitmap directory: ", field, " is ", value));
}

}  // namespace

absl::StatusOr<BitmapDirectory> find_bitmap_directory(const Header& header) {
  const HeaderExtension* const extension =
      header.find_extension(kExtensionBitmaps);
  if (extension == nullptr ||
      (header.autoclear_features & kAutoclearBitmaps) == 0) {
    return BitmapDirectory();
  }
  if (extension->data.size() != kBitmapsExtensionBytes)
    return bad_directory("length of the extension", extension->data.size());
  const char* const data = extension->data.data();
  BitmapDirectory directory;
  directory.count = load_big32(data + kBitmapsCountOffset);
  directory.length_bytes = load_big64(data + kBitmapsDirectorySizeOffset);
  directory.offset = load_big64(data + kBitmapsDirectoryOffsetOffset);
  if (directory.count == 0 || directory.count > kMaxBitmapCount)
    return bad_directory("number of bitmaps", directory.count);
  if (directory.length_bytes > kMaxBitmapDirectoryBytes)
    return bad_directory("length", directory.length_bytes);
  if (!is_aligned(directory.offset, header.cluster_size_bytes()) ||
      directory.offset > kMaxHostOffset) {
    return bad_directory("offset", directory.offset);
  }
  return directory;
}

absl::StatusOr<BitmapTablePlace> BitmapDirectoryReader::next() {
  std::array<uint8_t, kBitmapEntryBytes> entry{};
  if (directory_.length_bytes - position_ < entry.size())
    return bad_directory("number of bitmaps", directory_.count);
  absl::Status status =
      file_->read(Purpose::kHeaderLoad, entry.data(), entry.size(),
                  directory_.offset + position_);
  if (!status.ok()) return status;
  const uint64_t name_bytes = load_big16(&entry[kBitmapNameSizeOffset]);
  const uint64_t extra_bytes = load_big32(&entry[kBitmapExtraSizeOffset]);
  const uint64_t length = align_up(kBitmapEntryBytes + name_bytes + extra_bytes,
                                   kBitmapEntryAlignment);
  BitmapTablePlace place;
  place.offset = load_big64(&entry[kBitmapTableOffsetOffset]);
  place.entry_count = load_big32(&entry[kBitmapTableSizeOffset]);
  if (name_bytes == 0 || name_bytes > kMaxBitmapNameBytes)
    return bad_directory("length of a name", name_bytes);
  if (length > directory_.length_bytes - position_)
    return bad_directory("length of an entry", length);
  if (place.entry_count > kMaxBitmapTableEntries)
    return bad_directory("size of a bitmap table", place.entry_count);
  if (place.offset > kMaxHostOffset)
    return bad_directory("offset of a bitmap table", place.offset);
  position_ += length;
  ++index_;
  return place;
}

bool is_valid_bitmap_table_entry(uint64_t entry, uint64_t cluster_bytes) {
  const uint64_t offset = entry & kBitmapTableOffsetMask;
  if ((entry & kBitmapTableReservedMask) != 0) return false;
  // Bit 0 says what is not stored.
  if (offset != 0 && (entry & kBitmapTableAllOnes) != 0) return false;
  return is_aligned(offset, cluster_bytes);
}

}  // namespace spindle::qcow2

#include "formats/qcow2/bitmap_directory.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "absl/base/macros.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/access.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle::qcow2 {
namespace {

absl::Status bad_directory(absl::string_view field, uint64_t value,
                           absl::string_view limit) {
  return absl::DataLossError(absl::StrCat("qcow2: bitmap directory: ", field,
                                          " is ", value, ": ", limit));
}

// The same, for which QEMU has the words `words`.
absl::Status bad_directory(absl::string_view field, uint64_t value,
                           absl::string_view limit, absl::string_view words) {
  return with_qemu_words(bad_directory(field, value, limit), words);
}

constexpr absl::string_view kBrokenWords = "Broken bitmap directory";

std::string at_most(uint64_t limit) {
  return absl::StrCat("at most ", limit, " is possible");
}

}  // namespace

uint64_t BitmapEntry::length_bytes() const {
  return align_up(kBitmapEntryBytes + extra_data.size() + name.size(),
                  kBitmapEntryAlignment);
}

uint64_t bitmap_table_entries_for(uint64_t size_bytes,
                                  uint32_t granularity_bits,
                                  uint64_t cluster_bytes) {
  const uint64_t granules =
      divide_round_up(size_bytes, uint64_t{1} << granularity_bits);
  return divide_round_up(divide_round_up(granules, 8), cluster_bytes);
}

// ---- The header extension ---------------------------------------------------

absl::StatusOr<BitmapDirectory> find_bitmap_directory(const Header& header) {
  const HeaderExtension* const extension =
      header.find_extension(kExtensionBitmaps);
  if (extension == nullptr) return BitmapDirectory();
  ABSL_ASSERT(extension->data.size() == kBitmapsExtensionBytes);
  if ((header.autoclear_features & kAutoclearBitmaps) == 0)
    return BitmapDirectory();
  const char* const data = extension->data.data();
  const uint32_t reserved = load_big32(data + kBitmapsReservedOffset);
  if (reserved != 0)
    return bad_directory("reserved field", reserved, "it must be 0",
                         "bitmaps_ext: Reserved field is not zero");
  BitmapDirectory directory;
  directory.count = load_big32(data + kBitmapsCountOffset);
  directory.length_bytes = load_big64(data + kBitmapsDirectorySizeOffset);
  directory.offset = load_big64(data + kBitmapsDirectoryOffsetOffset);
  if (directory.count == 0 || directory.count > kMaxBitmapCount) {
    return bad_directory(
        "number of bitmaps", directory.count,
        absl::StrCat("1 to ", kMaxBitmapCount, " is possible"),
        directory.count == 0
            ? "found bitmaps extension with zero bitmaps"
            : absl::StrCat("bitmaps_ext: Image has ", directory.count,
                           " bitmaps, exceeding the QEMU supported maximum of ",
                           kMaxBitmapCount));
  }
  if (directory.length_bytes > kMaxBitmapDirectoryBytes) {
    return bad_directory("length", directory.length_bytes,
                         at_most(kMaxBitmapDirectoryBytes),
                         absl::StrCat("bitmaps_ext: bitmap directory size (",
                                      directory.length_bytes,
                                      ") exceeds the maximum supported size (",
                                      kMaxBitmapDirectoryBytes, ")"));
  }
  if (!is_aligned(directory.offset, header.cluster_size_bytes())) {
    return bad_directory(
        "offset", directory.offset,
        absl::StrCat("it must be a multiple of the cluster size, ",
                     header.cluster_size_bytes()),
        "bitmaps_ext: invalid bitmap directory offset");
  }
  if (directory.offset > kMaxHostOffset)
    return bad_directory("offset", directory.offset, at_most(kMaxHostOffset));
  return directory;
}

std::string serialize_bitmaps_extension(const BitmapDirectory& directory) {
  std::string data(kBitmapsExtensionBytes, '\0');
  store_big32(&data[kBitmapsCountOffset], directory.count);
  store_big64(&data[kBitmapsDirectorySizeOffset], directory.length_bytes);
  store_big64(&data[kBitmapsDirectoryOffsetOffset], directory.offset);
  return data;
}

// ---- Entries ----------------------------------------------------------------

absl::string_view BitmapDirectoryReader::words_for_end() const {
  if (directory_.length_bytes == 0)
    return "Requested bitmap directory size is zero";
  return position_ == directory_.length_bytes
             ? "Less bitmaps found than specified in header extension"
             : kBrokenWords;
}

absl::Status BitmapDirectoryReader::check(const BitmapEntry& entry) const {
  const auto bad = [&](absl::string_view field, uint64_t value,
                       absl::string_view limit) {
    return bad_directory(absl::StrCat("entry ", index_, ": ", field), value,
                         limit,
                         absl::StrCat("Bitmap '", entry.name,
                                      "' doesn't satisfy the constraints"));
  };
  const uint64_t max_entries =
      std::min(kMaxBitmapTableEntries, kMaxBitmapBytes / cluster_bytes_);
  if (entry.table_entry_count == 0 || entry.table_entry_count > max_entries) {
    return bad("size of the table", entry.table_entry_count,
               absl::StrCat("1 to ", max_entries, " is possible"));
  }
  if (entry.table_offset == 0 ||
      !is_aligned(entry.table_offset, cluster_bytes_) ||
      entry.table_offset > kMaxHostOffset) {
    return bad("offset of the table", entry.table_offset,
               absl::StrCat("it must be a multiple of the cluster size, ",
                            cluster_bytes_, ", from one to ", kMaxHostOffset));
  }
  if (entry.granularity_bits < kMinBitmapGranularityBits ||
      entry.granularity_bits > kMaxBitmapGranularityBits) {
    return bad("granularity_bits", entry.granularity_bits,
               absl::StrCat(kMinBitmapGranularityBits, " to ",
                            kMaxBitmapGranularityBits, " is possible"));
  }
  if ((entry.flags & ~kBitmapKnownFlags) != 0)
    return bad("flags", entry.flags, "reserved bits are set");
  if (entry.type != kBitmapTypeDirtyTracking)
    return bad("type", entry.type, "only 1, dirty tracking, is known");
  const uint64_t needed = bitmap_table_entries_for(
      size_bytes_, entry.granularity_bits, cluster_bytes_);
  if (!entry.in_use() && entry.table_entry_count < needed) {
    return bad(
        "size of the table", entry.table_entry_count,
        absl::StrCat("a disk of ", size_bytes_, " bytes needs ", needed));
  }
  return absl::OkStatus();
}

absl::Status BitmapDirectoryReader::read_strings(uint64_t extra_bytes,
                                                 uint64_t name_bytes,
                                                 BitmapEntry* entry) {
  const uint64_t at = directory_.offset + position_ + kBitmapEntryBytes;
  if (extra_data_ == ExtraData::kKeep) {
    entry->extra_data.resize(extra_bytes);
    absl::Status status = file_->read(
        Purpose::kBitmapLoad, entry->extra_data.data(), extra_bytes, at);
    if (!status.ok()) return status;
  }
  entry->name.resize(name_bytes);
  return file_->read(Purpose::kBitmapLoad, entry->name.data(), name_bytes,
                     at + extra_bytes);
}

absl::StatusOr<bool> BitmapDirectoryReader::is_taken(const std::string& name) {
  const auto [known, is_new] =
      positions_.emplace(absl::HashOf(absl::string_view(name)), position_);
  if (is_new) return false;
  std::array<uint8_t, kBitmapEntryBytes> bytes{};
  const uint64_t at = directory_.offset + known->second;
  absl::Status status =
      file_->read(Purpose::kBitmapLoad, bytes.data(), bytes.size(), at);
  if (!status.ok()) return status;
  std::string other(load_big16(&bytes[kBitmapNameSizeOffset]), '\0');
  if (other.size() != name.size()) return false;
  const uint64_t extra_bytes = load_big32(&bytes[kBitmapExtraSizeOffset]);
  status = file_->read(Purpose::kBitmapLoad, other.data(), other.size(),
                       at + kBitmapEntryBytes + extra_bytes);
  if (!status.ok()) return status;
  return other == name;
}

absl::StatusOr<BitmapEntry> BitmapDirectoryReader::next() {
  std::array<uint8_t, kBitmapEntryBytes> bytes{};
  const uint64_t left = directory_.length_bytes - position_;
  if (left < bytes.size()) {
    return bad_directory("number of bitmaps", directory_.count,
                         absl::StrCat("the directory ends after ", index_),
                         words_for_end());
  }
  absl::Status status =
      file_->read(Purpose::kBitmapLoad, bytes.data(), bytes.size(),
                  directory_.offset + position_);
  if (!status.ok()) return status;
  BitmapEntry entry;
  entry.table_offset = load_big64(&bytes[kBitmapTableOffsetOffset]);
  entry.table_entry_count = load_big32(&bytes[kBitmapTableSizeOffset]);
  entry.flags = load_big32(&bytes[kBitmapFlagsOffset]);
  entry.type = bytes[kBitmapTypeOffset];
  entry.granularity_bits = bytes[kBitmapGranularityBitsOffset];
  const uint64_t name_bytes = load_big16(&bytes[kBitmapNameSizeOffset]);
  const uint64_t extra_bytes = load_big32(&bytes[kBitmapExtraSizeOffset]);
  if (name_bytes == 0 || name_bytes > kMaxBitmapNameBytes) {
    return bad_directory(
        absl::StrCat("entry ", index_, ": length of the name"), name_bytes,
        absl::StrCat("1 to ", kMaxBitmapNameBytes, " is possible"),
        kBrokenWords);
  }
  const uint64_t length = align_up(kBitmapEntryBytes + name_bytes + extra_bytes,
                                   kBitmapEntryAlignment);
  if (length > left) {
    return bad_directory(
        absl::StrCat("entry ", index_, ": length"), length,
        absl::StrCat("the directory has ", left, " bytes from there on"),
        kBrokenWords);
  }
  status = read_strings(extra_bytes, name_bytes, &entry);
  if (status.ok()) status = check(entry);
  if (!status.ok()) return status;
  const absl::StatusOr<bool> taken = is_taken(entry.name);
  if (!taken.ok()) return taken.status();
  if (*taken) {
    return with_qemu_words(
        absl::DataLossError(
            absl::StrCat("qcow2: bitmap directory: two bitmaps have the name '",
                         entry.name, "'")),
        absl::StrCat("Bitmap already exists: ", entry.name));
  }
  position_ += length;
  ++index_;
  if (at_end() && position_ != directory_.length_bytes) {
    return bad_directory(
        "number of bitmaps", directory_.count,
        absl::StrCat("the directory goes on for ",
                     directory_.length_bytes - position_, " bytes behind them"),
        directory_.length_bytes - position_ < kBitmapEntryBytes
            ? kBrokenWords
            : "More bitmaps found than specified in header "
              "extension");
  }
  return entry;
}

absl::StatusOr<std::vector<BitmapEntry>> read_bitmap_directory(
    ByteChannel* file, const Header& header, const BitmapDirectory& directory) {
  std::vector<BitmapEntry> entries;
  if (directory.count == 0) return entries;
  const uint64_t file_bytes = file->length_bytes();
  if (directory.offset > file_bytes ||
      directory.length_bytes > file_bytes - directory.offset) {
    return bad_directory("offset", directory.offset,
                         absl::StrCat(directory.length_bytes,
                                      " bytes from there on end beyond the "
                                      "file's ",
                                      file_bytes),
                         kBrokenWords);
  }
  BitmapDirectoryReader reader(file, header, directory);
  while (!reader.at_end()) {
    absl::StatusOr<BitmapEntry> entry = reader.next();
    if (!entry.ok()) return entry.status();
    entries.push_back(*std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::vector<uint8_t>> serialize_bitmap_directory(
    const std::vector<BitmapEntry>& entries) {
  uint64_t length = 0;
  for (const BitmapEntry& entry : entries) length += entry.length_bytes();
  if (entries.size() > kMaxBitmapCount || length > kMaxBitmapDirectoryBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        entries.size(), " bitmaps take ", length, " bytes: the limits are ",
        kMaxBitmapCount, " and ", kMaxBitmapDirectoryBytes));
  }
  std::vector<uint8_t> bytes(length);
  uint8_t* to = bytes.data();
  for (const BitmapEntry& entry : entries) {
    store_big64(to + kBitmapTableOffsetOffset, entry.table_offset);
    store_big32(to + kBitmapTableSizeOffset, entry.table_entry_count);
    store_big32(to + kBitmapFlagsOffset, entry.flags);
    to[kBitmapTypeOffset] = entry.type;
    to[kBitmapGranularityBitsOffset] = entry.granularity_bits;
    store_big16(to + kBitmapNameSizeOffset,
                static_cast<uint16_t>(entry.name.size()));
    store_big32(to + kBitmapExtraSizeOffset,
                static_cast<uint32_t>(entry.extra_data.size()));
    uint8_t* const strings =
        std::copy(entry.extra_data.begin(), entry.extra_data.end(),
                  to + kBitmapEntryBytes);
    std::copy(entry.name.begin(), entry.name.end(), strings);
    to += entry.length_bytes();
  }
  return bytes;
}

bool is_valid_bitmap_table_entry(uint64_t entry, uint64_t cluster_bytes) {
  const uint64_t offset = entry & kBitmapTableOffsetMask;
  if ((entry & kBitmapTableReservedMask) != 0) return false;
  // Bit 0 says what is not stored.
  if (offset != 0 && (entry & kBitmapTableAllOnes) != 0) return false;
  return is_aligned(offset, cluster_bytes);
}

}  // namespace spindle::qcow2

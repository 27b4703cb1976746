// The bitmap directory of an image, as it stands in the file: parsed,
// validated, serialised.  qcow2 specification, "Bitmaps".
//
// Thread safety: values and functions without state; a reader belongs to one
// thread.
#ifndef SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_
#define SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/byte_channel.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

// What the header extension says.
struct BitmapDirectory {
  uint32_t count = 0;
  uint64_t offset = 0;
  uint64_t length_bytes = 0;
  bool operator==(const BitmapDirectory&) const = default;
};

// One entry.
struct BitmapEntry {
  uint64_t table_offset = 0;
  uint32_t table_entry_count = 0;
  uint32_t flags = 0;  // kBitmap...
  uint8_t type = kBitmapTypeDirtyTracking;
  uint8_t granularity_bits = 0;
  std::string extra_data;  // of unknown meaning; kept
  std::string name;

  bool in_use() const { return (flags & kBitmapInUse) != 0; }
  // Extra data may forbid to use the bits.
  bool is_usable() const {
    return extra_data.empty() || (flags & kBitmapExtraDataCompatible) != 0;
  }
  uint64_t granularity_bytes() const { return uint64_t{1} << granularity_bits; }
  uint64_t length_bytes() const;
  bool operator==(const BitmapEntry&) const = default;
};

// What the header extension says; count 0 if there is none, or if somebody who
// does not know bitmaps wrote the image since (autoclear bit 0).
// REQUIRES: the extension has the length that parse_header() insists on.
// Errors: kDataLoss if it is damaged.
absl::StatusOr<BitmapDirectory> find_bitmap_directory(const Header& header);

// The extension's data.
std::string serialize_bitmaps_extension(const BitmapDirectory& directory);

// Reads the directory entry by entry.
class BitmapDirectoryReader {
 public:
  // What extra data there is may be long, and only who writes the directory
  // anew needs it.
  enum class ExtraData { kKeep, kSkip };

  // `file` must outlive this.
  BitmapDirectoryReader(ByteChannel* file, const Header& header,
                        const BitmapDirectory& directory,
                        ExtraData extra_data = ExtraData::kKeep)
      : extra_data_(extra_data),
        file_(file),
        cluster_bytes_(header.cluster_size_bytes()),
        size_bytes_(header.size_bytes),
        directory_(directory) {}

  bool at_end() const { return index_ == directory_.count; }
  // REQUIRES: !at_end().
  // Errors: kDataLoss for a damaged entry, or the name of one before; those of
  // the file.
  absl::StatusOr<BitmapEntry> next();

 private:
  absl::Status check(const BitmapEntry& entry) const;
  // QEMU's, for a directory that ends too early.
  absl::string_view words_for_end() const;
  // True if an earlier entry has this name.
  absl::StatusOr<bool> is_taken(const std::string& name);
  absl::Status read_strings(uint64_t extra_bytes, uint64_t name_bytes,
                            BitmapEntry* entry);

  const ExtraData extra_data_;
  ByteChannel* const file_;
  const uint64_t cluster_bytes_;
  const uint64_t size_bytes_;
  const BitmapDirectory directory_;
  uint32_t index_ = 0;
  uint64_t position_ = 0;
  // Where entries stand, by a hash of their names: these may take 64 MiB.
  absl::flat_hash_map<size_t, uint64_t> positions_;
};

// All of it.  Errors: those above, and kDataLoss if it does not lie within the
// file.
absl::StatusOr<std::vector<BitmapEntry>> read_bitmap_directory(
    ByteChannel* file, const Header& header, const BitmapDirectory& directory);

// Errors: kResourceExhausted if it would be too long.
absl::StatusOr<std::vector<uint8_t>> serialize_bitmap_directory(
    const std::vector<BitmapEntry>& entries);

bool is_valid_bitmap_table_entry(uint64_t entry, uint64_t cluster_bytes);

// How many entries the table of a bitmap has that has one bit for each granule
// of a disk of `size_bytes`.
uint64_t bitmap_table_entries_for(uint64_t size_bytes,
                                  uint32_t granularity_bits,
                                  uint64_t cluster_bytes);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_

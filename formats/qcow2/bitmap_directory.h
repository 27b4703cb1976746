// Where an image's persistent bitmaps have their tables: as much of the bitmap
// directory as counting references takes.  qcow2 specification, "Bitmaps".
//
// Thread safety: values; a reader belongs to one thread.
#ifndef SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_
#define SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

struct BitmapDirectory {
  uint32_t count = 0;
  uint64_t offset = 0;
  uint64_t length_bytes = 0;
};

struct BitmapTablePlace {
  uint64_t offset = 0;
  uint64_t entry_count = 0;
};

// What the header extension says; count 0 if there is none, or if somebody who
// does not know bitmaps wrote the image since (autoclear bit 0).
// Errors: kDataLoss if it is damaged.
absl::StatusOr<BitmapDirectory> find_bitmap_directory(const Header& header);

// Reads the directory entry by entry.
class BitmapDirectoryReader {
 public:
  // `file` must outlive this.
  BitmapDirectoryReader(ByteChannel* file, const BitmapDirectory& directory)
      : file_(file), directory_(directory) {}

  bool at_end() const { return index_ == directory_.count; }
  // REQUIRES: !at_end().
  // Errors: kDataLoss for a damaged entry, those of the file.
  absl::StatusOr<BitmapTablePlace> next();

 private:
  ByteChannel* const file_;
  const BitmapDirectory directory_;
  uint32_t index_ = 0;
  uint64_t position_ = 0;
};

bool is_valid_bitmap_table_entry(uint64_t entry, uint64_t cluster_bytes);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_BITMAP_DIRECTORY_H_

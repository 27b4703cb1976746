// The bits of one bitmap in the file: its table, and the clusters that the
// table names.  qcow2 specification, "Bitmap table" and "Bitmap data".
//
// Thread safety: functions without state.
#ifndef SPINDLE_FORMATS_QCOW2_BITMAP_STORAGE_H_
#define SPINDLE_FORMATS_QCOW2_BITMAP_STORAGE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/dirty_bitmap.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// Where a bitmap lies in the file.
struct BitmapPlace {
  uint64_t table_offset = 0;
  uint32_t table_entry_count = 0;
  // Of the table and of the bits, in runs.
  std::vector<HostClusters> clusters;

  uint64_t cluster_count() const;
};

// Reads the table of `entry` and, unless `bits` is null, the bits into `bits`,
// which is clean.
// Errors: kDataLoss if the table is damaged, or it and the clusters that it
// names are more than `max_clusters`; those of the file.
absl::StatusOr<BitmapPlace> read_bitmap(ByteChannel* file,
                                        uint64_t cluster_bytes,
                                        const BitmapEntry& entry,
                                        uint64_t max_clusters,
                                        DirtyBitmap* bits);

// Writes `bits` to clusters of its own: data, then the table.  Nothing is
// durable yet.  On error nothing stays allocated.
absl::StatusOr<BitmapPlace> write_bitmap(Image* image, const DirtyBitmap& bits);

// Takes back what write_bitmap() made and nothing names.
void discard_bitmap(Image* image, const BitmapPlace& place);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_BITMAP_STORAGE_H_

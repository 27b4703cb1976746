// Bitmaps: the persistent dirty bitmaps of an open image.
//
// qcow2 specification, "Bitmaps".  While the image is open for writing the bits
// are in memory and every bitmap is marked "in use" in the file, durable before
// the first write; store() puts the bits back and clears the marks.  A bitmap
// that is found in use is inconsistent: it is kept as it is and can only be
// removed.  The same goes for one with extra data that forbid its use; it stays
// marked once somebody has written to the image, because it misses that.
//
// Order: new bits, tables and the directory are durable with their refcounts
// before the header names them (bitmaps_extension.h); then the old ones are
// freed.  Marks are changed in place: one write, in which every sector by
// itself is old or new, and right either way.
//
// What is changed by enabling, disabling, clearing, merging and adding is in
// memory until store(); a removal is in the file at once.  Callers close the
// image's gate for all of these: for as long as they take in memory, and for
// remove() and store() some writes and syncs; writers wait.
//
// Thread safety: list() and find() inside the image's gate; recording too (see
// DirtyRecorder); the others while it is closed.
#ifndef SPINDLE_FORMATS_QCOW2_BITMAPS_H_
#define SPINDLE_FORMATS_QCOW2_BITMAPS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/dirty_bitmap.h"
#include "engine/sector.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/bitmap_storage.h"
#include "formats/qcow2/bitmaps_extension.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// The bits of an image that is open for writing.  They outlive Bitmaps and the
// Image, so that the image's parts can be made anew.
class LiveBitmaps {
 public:
  DirtyRecorder* recorder() { return &recorder_; }
  bool empty() const { return bitmaps_.empty(); }
  // The image is somebody else's now.
  void forget();

 private:
  friend class Bitmaps;
  struct Live {
    std::string name;
    std::shared_ptr<DirtyBitmap> bits;
    bool enabled = false;
  };
  const Live* find(absl::string_view name) const;
  void replace(std::vector<Live> bitmaps);

  std::vector<Live> bitmaps_;
  DirtyRecorder recorder_;
};

class Bitmaps {
 public:
  // Both must outlive this.
  Bitmaps(Image* image, LiveBitmaps* live);

  // Reads and checks everything, and takes up what is live; writes nothing.
  // Again is fine.
  absl::Status prepare_for_writing();
  // Enters where they lie, for the overlap check; when the image has entered
  // its own structures.
  absl::Status enter_extents();
  // Marks them in the file, durably, before the first write; also after a
  // store() that failed, before the next.
  absl::Status mark_in_use();
  // Puts the bits into the file and clears the marks; afterwards mark_in_use()
  // or nothing.  On error they stay marked, as far as mark_in_use() says so.
  // REQUIRES: guest data and mappings are settled.
  absl::Status store();

  absl::StatusOr<std::vector<DirtyBitmapInfo>> list();
  absl::StatusOr<std::shared_ptr<const DirtyBitmap>> find(
      absl::string_view name);
  absl::Status add(const NewDirtyBitmap& wanted);
  absl::Status remove(absl::string_view name);
  absl::Status clear(absl::string_view name);
  absl::Status enable(absl::string_view name, bool enabled);
  absl::Status merge(absl::string_view name, const DirtyBitmap& source);

  bool empty() const { return bitmaps_.empty(); }
  // For a change of the disk's length: OK if they can follow it, ...
  absl::Status check_resize(uint64_t length_bytes) const;
  // ... and what they do when it has changed.  New parts are clean.
  void resize(uint64_t length_bytes);

 private:
  struct Bitmap {
    std::string name;
    uint32_t granularity_bits = 0;
    bool enabled = false;
    // Null: it is inconsistent.
    std::shared_ptr<DirtyBitmap> bits;
    // As the directory has it; nothing: it was never stored.
    std::optional<BitmapEntry> entry;
    BitmapPlace place;
  };

  absl::StatusOr<std::vector<BitmapEntry>> read_entries();
  // What it is when it is not in memory.
  absl::StatusOr<Bitmap> load(const BitmapEntry& entry, uint64_t max_clusters);
  // What was marked here already, or was never stored, is still in memory.
  void take_up_live();
  void update_live();

  absl::StatusOr<Bitmap*> find_usable(absl::string_view name);
  absl::Status check_new(const NewDirtyBitmap& wanted, uint64_t granularity);
  // Of all bitmaps of a disk of that length, and one more if `added_bits`.
  absl::Status check_sizes(uint64_t length_bytes,
                           std::optional<uint32_t> added_bits) const;
  uint64_t default_granularity() const;

  // The entry that store() wants for it, given where its bits lie.
  BitmapEntry entry_for(const Bitmap& bitmap, const BitmapPlace& place) const;
  absl::Status store_in_place();
  absl::Status store_anew();
  // Makes the directory have `entries`; on error it has what it had, or
  // broken_ is set.
  absl::Status switch_to(const std::vector<BitmapEntry>& entries);
  absl::Status write_directory(const std::vector<BitmapEntry>& entries,
                               BitmapDirectory* directory, ByteRange* place);
  // Overwrites the directory with the same entries, but for flags.
  absl::Status write_flags(const std::vector<BitmapEntry>& entries);
  std::vector<BitmapEntry> entries_in_file() const;
  void free_place(const BitmapPlace& place);
  absl::Status enter_place(BitmapPlace* place);
  void remove_extents(const BitmapPlace& place);

  Image& image_;
  LiveBitmaps& live_;
  BitmapsExtension extension_;
  bool loaded_ = false;
  bool entered_extents_ = false;
  // Why nothing can be changed any more.
  absl::Status broken_;
  // Only if that is set: in the file they may count as stored, so the disk must
  // not change any more.
  bool may_be_unmarked_ = false;
  std::vector<Bitmap> bitmaps_;
  BitmapDirectory directory_;
  // Where that lies: whole clusters.
  ByteRange directory_place_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_BITMAPS_H_

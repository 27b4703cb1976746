// MetadataExtents: where the image's own structures lie in the file.
//
// Before every write of guest data to the file this set is asked whether the
// write would hit metadata (rule 4): a damaged or crafted image may map a guest
// cluster onto a table.  One ordered set, O(log n); never a walk of tables.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_CLUSTER_METADATA_EXTENTS_H_
#define SPINDLE_FORMATS_CLUSTER_METADATA_EXTENTS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "engine/sector.h"

namespace spindle {

enum class MetadataKind : uint8_t {
  kHeader,
  kL1Table,
  kL2Table,
  kRefcountTable,
  kRefcountBlock,
  kSnapshotTable,
  kSnapshotL1Table,
  kBitmapDirectory,
  kBitmap,
  kEncryptionHeader,
};
absl::string_view metadata_kind_name(MetadataKind kind);

class MetadataExtents {
 public:
  // Enters `range` (a multiple of clusters, in the file).
  // Errors: kDataLoss if it overlaps something that is entered already.
  absl::Status add(MetadataKind kind, ByteRange range);
  // Removes what was entered as `range`.
  void remove(ByteRange range);

  void clear();

  // The metadata that `range` overlaps, if any.
  std::optional<MetadataKind> find_overlap(ByteRange range) const;

 private:
  struct Extent {
    uint64_t end = 0;
    MetadataKind kind = MetadataKind::kHeader;
  };
  std::optional<MetadataKind> find_overlap_locked(ByteRange range) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::metadata_extents)
      ABSL_ACQUIRED_BEFORE(lock_ranks::pending_frees){
          LockRank::kMetadataExtents};
  // By first byte; extents do not overlap.
  absl::btree_map<uint64_t, Extent> extents_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_METADATA_EXTENTS_H_

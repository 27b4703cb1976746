// Allocator: where new clusters, tables and compressed data go.
//
// A qcow image does not count its clusters: what lies in its file is in use,
// and what is new goes to the end, where QEMU puts it.  Nothing is ever freed.
// A compressed cluster that is overwritten leaves its bytes behind; without
// counts nobody can say that no other entry names them.  Only what an attempt
// took that came to nothing, and no table ever named, is used again.
//
// Thread safety: every method, from any thread, except where it says otherwise.
#ifndef SPINDLE_FORMATS_QCOW_ALLOCATOR_H_
#define SPINDLE_FORMATS_QCOW_ALLOCATOR_H_

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "engine/sector.h"
#include "formats/cluster/metadata_extents.h"

namespace spindle::qcow {

class Allocator {
 public:
  // What is new goes behind `file_bytes`, the file's length as it was opened,
  // and the cluster that it may end in.  `extents` must outlive this.
  Allocator(uint64_t cluster_bytes, uint64_t file_bytes,
            const MetadataExtents* extents);

  // The file is as long as that, or longer: somebody else may have written to
  // it before this image may.
  void note_file_end(uint64_t file_bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  struct Allocation {
    ByteRange range;
    // Nothing was ever there: reads as zeroes without being written.
    bool reads_as_zeroes = false;
  };
  // `bytes` bytes in one piece, from a multiple of the cluster size on.
  // REQUIRES: bytes > 0.
  // Errors: kResourceExhausted beyond what a file can have, kDataLoss if the
  // image's own structures are there.
  absl::StatusOr<Allocation> allocate(uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The same, from a multiple of the sector size on: for the data of one
  // compressed cluster, which share sectors with nobody.
  absl::StatusOr<Allocation> allocate_compressed(uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes back what one of these gave and no table entry ever named.
  // REQUIRES: nobody writes there any more.
  void free_unpublished(ByteRange range) ABSL_LOCKS_EXCLUDED(mutex_);

  // Tables are about to name `range`, which one of these gave.
  void note_published(ByteRange range);
  // How long the file must be to hold everything that tables came to name since
  // it was opened.
  uint64_t published_end_bytes() const {
    return published_end_.load(std::memory_order_acquire);
  }

  // True if `range` reaches beyond the file as it was opened and everything
  // that was handed out since: nothing valid can lie there.
  bool is_beyond_end(ByteRange range) const {
    return range.end() > high_water_.load(std::memory_order_acquire);
  }

 private:
  absl::StatusOr<Allocation> allocate_aligned(uint64_t bytes,
                                              uint64_t alignment)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // From what was given back; length 0 if nothing there is long enough.
  ByteRange take_returned_locked(uint64_t bytes, uint64_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint64_t cluster_bytes_;
  const MetadataExtents* const extents_;

  // One past the last byte ever handed out, or the file's end at open.  Changed
  // under mutex_; read anywhere.
  std::atomic<uint64_t> high_water_;
  std::atomic<uint64_t> published_end_{0};

  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::allocator)
      ABSL_ACQUIRED_BEFORE(lock_ranks::cache_shard){LockRank::kAllocator};
  // Behind everything that is in use; at most high_water_.  A whole sector.
  uint64_t end_ ABSL_GUARDED_BY(mutex_);
  // What was given back before end_, by first byte; ends.  They do not touch
  // each other.
  absl::btree_map<uint64_t, uint64_t> returned_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_ALLOCATOR_H_

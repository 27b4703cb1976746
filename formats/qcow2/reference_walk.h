// ReferenceWalk: counts every reference that an image's metadata holds to its
// host clusters, and says what is wrong with the references themselves.
//
// Thread safety: one thread; L2 tables are walked in parallel inside.
#ifndef SPINDLE_FORMATS_QCOW2_REFERENCE_WALK_H_
#define SPINDLE_FORMATS_QCOW2_REFERENCE_WALK_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/findings.h"
#include "formats/qcow2/reference_counter.h"
#include "formats/qcow2/snapshot_table.h"
#include "formats/qcow2/stored_refcounts.h"
#include "formats/qcow2/table_walk.h"

namespace spindle::qcow2 {

// An entry in an L2 table that a repair turns into plain zeroes.
struct EntryToZero {
  uint64_t table_offset = 0;
  uint64_t index = 0;
  uint64_t entry = 0;
};

class ReferenceWalk {
 public:
  // All must outlive it; `counter` is empty and fits the file.
  ReferenceWalk(CheckContext* context, ReferenceCounter* counter)
      : context_(context),
        counter_(counter),
        file_bytes_(context->file_bytes()),
        counted_clusters_(context->geometry.clusters_for(file_bytes_)) {}

  // Everything but the refcount blocks and, without `with_refcount_table`, the
  // refcount table.
  // Errors: kCancelled; those of the file, where the count is not complete.
  absl::Status count_all(bool with_refcount_table);

  // The refcount blocks; true in *unusable if the structure must be rebuilt.
  absl::Status count_refcount_blocks(const StoredRefcounts& stored,
                                     bool* unusable);

  // Clusters that the file has or that a reference named.
  uint64_t counted_clusters() const { return counted_clusters_; }

  // Counts the clusters of one region.
  void count(uint64_t offset, uint64_t length, Findings* findings);

  // For a repair: set aside what can be turned into zeroes instead of counting
  // it.  Each was counted as a corruption.
  void set_aside_unaligned_zeroes() { set_aside_ = true; }
  std::vector<EntryToZero> take_set_aside() {
    absl::MutexLock lock(&mutex_);
    return std::move(to_zero_);
  }

 private:
  absl::Status count_l1(const L1Place& l1, bool active);
  void count_l2(const L2Piece& piece, bool active, Findings* findings);
  // The entry `index` of the piece.
  void count_standard(const L2Entries& entries, const L2Piece& piece,
                      uint64_t index, bool active, Findings* findings);
  void count_compressed(const L2Entries& entries, const L2Piece& piece,
                        uint64_t index, bool active, Findings* findings);
  bool set_aside(const EntryToZero& entry) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status count_snapshots();
  absl::Status count_bitmaps();
  absl::Status count_bitmap_table(uint64_t offset, uint64_t entry_count);
  void count_encryption_header();

  CheckContext* const context_;
  ReferenceCounter* const counter_;
  const uint64_t file_bytes_;
  bool set_aside_ = false;
  std::atomic<uint64_t> counted_clusters_;

  absl::Mutex mutex_;  // a leaf
  std::vector<EntryToZero> to_zero_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_REFERENCE_WALK_H_

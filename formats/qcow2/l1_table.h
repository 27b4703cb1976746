// L1Table: the L1 table in memory, whole.
//
// Entries are read without a lock.  A missing L2 table is created by one thread
// while others that need the same one wait; the entry is published when the new
// table's cluster reads as zeroes.  Changed entries reach the disk in flush
// rounds, after the tables that they name.
//
// Thread safety: every method, from any thread, except where it says otherwise.
#ifndef SPINDLE_FORMATS_QCOW2_L1_TABLE_H_
#define SPINDLE_FORMATS_QCOW2_L1_TABLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/byte_channel.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/qcow2/address.h"

namespace spindle::qcow2 {

class L1Table {
 public:
  // REQUIRES: entry_count was checked against its limit and the file.
  L1Table(HostOffset host, uint64_t entry_count);

  // Reads the table; once, before anything else.
  absl::Status load(ByteChannel* file);

  uint64_t entry_count() const { return entry_count_; }
  HostOffset host() const { return host_; }

  // The L2 table of entry `index`; offset 0 if there is none.  Reserved bits
  // are masked.  REQUIRES: index < entry_count().
  HostOffset l2_table(uint64_t index) const;

  // Makes the caller the one who creates the L2 table of `index`: true.  False:
  // the table exists (perhaps because somebody else has just created it).
  // Waits for another creator.  After true, the caller calls end_create().
  bool begin_create(uint64_t index);
  // Publishes the new table, or, with offset 0, gives up.
  void end_create(uint64_t index, HostOffset l2_table);

  // Runs of changed entries, as bytes for the disk; they count as unchanged
  // from then on.  One caller at a time (the flush round).
  struct Piece {
    uint64_t first_entry = 0;
    std::vector<uint8_t> bytes;
  };
  std::vector<Piece> take_dirty();
  // Those pieces did not reach the disk.
  void restore(const std::vector<Piece>& pieces);
  // Where a piece goes in the file.
  HostOffset host_of(const Piece& piece) const {
    return HostOffset{host_.bytes + piece.first_entry * 8};
  }

 private:
  const HostOffset host_;
  const uint64_t entry_count_;
  // Host-endian, COPIED bit included.
  const std::unique_ptr<std::atomic<uint64_t>[]> entries_;

  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::l1_table)
      ABSL_ACQUIRED_BEFORE(lock_ranks::metadata_extents){LockRank::kL1Table};
  absl::btree_set<uint64_t> dirty_ ABSL_GUARDED_BY(mutex_);
  // Tables that somebody is creating; few at a time.
  std::vector<uint64_t> creating_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar created_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_L1_TABLE_H_

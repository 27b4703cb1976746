// L1Table: the L1 table in memory, whole.
//
// Entries are read without a lock.  An L2 table that is missing, or that a
// snapshot shares, is made by one thread while others that need the same one
// wait; the entry is published when the new table's cluster has its content.
// Changed entries reach the disk in flush rounds, after the tables that they
// name.
//
// Thread safety: every method, from any thread, except where it says otherwise.
#ifndef SPINDLE_FORMATS_CLUSTER_L1_TABLE_H_
#define SPINDLE_FORMATS_CLUSTER_L1_TABLE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/byte_channel.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/cluster/address.h"

namespace spindle {

// What the bits of an entry say.
struct L1EntryBits {
  uint64_t offset_mask = ~uint64_t{0};
  // Set in the entry of an L2 table that no snapshot shares; 0 where there are
  // no snapshots.
  uint64_t own_flag = 0;
};

class L1Table {
 public:
  static constexpr size_t kEntryBytes = 8;

  // REQUIRES: entry_count was checked against its limit and the file.
  L1Table(HostOffset host, uint64_t entry_count, L1EntryBits bits);

  // Reads the table; once, before anything else.
  // Errors: kResourceExhausted if there was no memory for it, those of the
  // file.
  absl::Status load(ByteChannel* file);

  uint64_t entry_count() const { return entry_count_; }
  HostOffset host() const { return host_; }

  // The L2 table of entry `index`; offset 0 if there is none.  Reserved bits
  // are masked.  REQUIRES: index < entry_count().
  HostOffset l2_table(uint64_t index) const;

  // True if there is an L2 table, and no snapshot shares it: its entries may be
  // changed.
  bool is_own(uint64_t index) const;
  // The entry as the disk has it, but for the byte order.
  uint64_t raw_entry(uint64_t index) const {
    return entry(index).load(std::memory_order_acquire);
  }

  // Makes the caller the one who creates the L2 table of `index`, or a copy of
  // the shared one: true.  False: is_own() (perhaps because somebody else has
  // just made it).  Waits for another creator.  After true, the caller calls
  // end_create().
  bool begin_create(uint64_t index);
  // Publishes the new table, or, with offset 0, gives up.
  void end_create(uint64_t index, HostOffset l2_table);

  // ---- While nothing else uses the table (the gate is closed) --------------

  // Marks whether a snapshot shares the L2 table of `index`.
  void set_own(uint64_t index, bool own);
  // Takes the first entries from `raw_entries`, and clears the others; the disk
  // has them already.  REQUIRES: no more than entry_count(), nothing changed
  // that has not reached the disk.
  void replace(const std::vector<uint64_t>& raw_entries);
  // Clears the entries from `first` on; likewise.
  void clear_from(uint64_t first);
  // The disk has a table of `entry_count` entries at `host` now: the present
  // ones, and zeroes behind.  Ends the process, as `new` does, where there is
  // no memory.  REQUIRES: no fewer, nothing changed.
  void grow(HostOffset host, uint64_t entry_count);

  // ---- For the flush round -------------------------------------------------

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
    return HostOffset{host_.bytes + piece.first_entry * kEntryBytes};
  }

 private:
  struct Free {
    void operator()(uint64_t* entries) const { std::free(entries); }
  };
  // Zeroes; null if there is no memory.
  static uint64_t* allocate(uint64_t entry_count);
  static std::atomic_ref<uint64_t> entry_of(uint64_t* entries, uint64_t index) {
    return std::atomic_ref<uint64_t>(entries[index]);
  }
  std::atomic_ref<uint64_t> entry(uint64_t index) const {
    return entry_of(entries_.get(), index);
  }

  const L1EntryBits bits_;
  // These three change only in grow().
  HostOffset host_;
  uint64_t entry_count_;
  // Host-endian, flags included.  From calloc(): a long table's pages that have
  // nothing but zeroes take no memory.
  using Entries = std::unique_ptr<uint64_t, Free>;
  Entries entries_;

  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::l1_table)
      ABSL_ACQUIRED_BEFORE(lock_ranks::metadata_extents){LockRank::kL1Table};
  absl::btree_set<uint64_t> dirty_ ABSL_GUARDED_BY(mutex_);
  // Tables that somebody is creating; few at a time.
  std::vector<uint64_t> creating_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar created_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_L1_TABLE_H_

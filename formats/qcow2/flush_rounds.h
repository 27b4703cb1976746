// FlushRounds: metadata written back in the order that keeps the disk
// consistent at every moment (rule 2), without stopping readers or writers.
//
// A round takes a snapshot of all that is dirty and then
//   1. writes refcount blocks (and, behind a sync, refcount table entries that
//      name new ones),
//   2. syncs, if the snapshot maps new clusters: their refcounts and their data
//      are durable,
//   3. writes L2 slices and L1 entries,
//   4. syncs: mappings and drops are durable,
//   5. gives up what the drops freed (Allocator::reclaim), and punches holes
//      into discarded clusters that were kept (KeptDiscards::punch).
// An external data file is synced first of all: what the snapshot maps, or
// calls zero, is durable there.  With nothing dirty it is one sync.  Refcounts
// are lowered only in step 5, so a snapshot never holds a decrement whose drop
// is not durable, and the phases form no circle.
//
// Concurrent flushes share rounds (SharedRounds).
//
// Thread safety: every method, from any thread; no lock is held during I/O.
#ifndef SPINDLE_FORMATS_QCOW2_FLUSH_ROUNDS_H_
#define SPINDLE_FORMATS_QCOW2_FLUSH_ROUNDS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "engine/byte_channel.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/shared_rounds.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/kept_discards.h"
#include "formats/qcow2/pending_frees.h"

namespace spindle::qcow2 {

class FlushRounds {
 public:
  // All must outlive this.
  struct Parts {
    ByteChannel* file;
    ByteChannel* external_data;  // null: guest data are in `file`
    TableCache* l2_tables;
    TableCache* refblocks;
    L1Table* l1;
    Allocator* allocator;
    PendingFrees* pending;
    KeptDiscards* kept_discards = nullptr;  // null: none are kept
  };

  explicit FlushRounds(Parts parts) : parts_(parts) {}

  // Everything that completed before the call is durable when it returns OK.
  absl::Status flush();

  // If a cache is crowded with dirty slices: runs a round, or lets the one that
  // runs do it.  Called at the end of operations that dirty slices.
  absl::Status write_back_if_crowded();

  // Flushes until nothing is dirty and nothing pending is left that can be
  // given up: for close().
  absl::Status settle();

  // How many callers of flush() wait for another one's round, for tests.
  int waiting_count() const { return sharing_.waiting_count(); }

 private:
  struct Snapshot {
    std::vector<HostClusters> drops;
    uint64_t last_kept_discard = 0;
    std::vector<DirtyPiece> l2;
    std::vector<L1Table::Piece> l1;
    std::vector<Allocator::TableEntry> table;
    std::vector<DirtyPiece> refblocks;
    bool is_clean() const {
      return l2.empty() && l1.empty() && table.empty() && refblocks.empty();
    }
  };

  bool is_unsettled() const;
  absl::Status run_round();
  Snapshot take_snapshot();
  // Once it is on disk.
  absl::Status give_up(const Snapshot& snapshot);
  absl::Status sync_external_data();
  absl::Status write_out(const Snapshot& snapshot);
  void put_back(Snapshot* snapshot);
  absl::Status write_refcounts(const Snapshot& snapshot);
  absl::Status write_mappings(const Snapshot& snapshot);

  const Parts parts_;
  SharedRounds sharing_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_FLUSH_ROUNDS_H_

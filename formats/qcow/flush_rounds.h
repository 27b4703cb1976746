// FlushRounds: changed tables written back in the order that keeps the disk
// consistent at every moment (rule 2), without stopping readers or writers.
//
// A round takes a snapshot of all that is dirty and then
//   1. makes the file long enough for every cluster that the snapshot maps:
//      whoever opens the image next puts new clusters behind its end,
//   2. syncs, if the snapshot maps new clusters: they, their data and the
//      length are durable,
//   3. writes L2 slices and L1 entries,
//   4. syncs.
// With nothing dirty it is one sync.  A new L2 table needs none of its own: it
// lies in the file as zeroes, durably, before the L1 entry is written that
// names it.
//
// Concurrent flushes share rounds (SharedRounds).
//
// Thread safety: every method, from any thread; no lock is held during I/O.
#ifndef SPINDLE_FORMATS_QCOW_FLUSH_ROUNDS_H_
#define SPINDLE_FORMATS_QCOW_FLUSH_ROUNDS_H_

#include <vector>

#include "absl/status/status.h"
#include "engine/byte_channel.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/shared_rounds.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow/allocator.h"

namespace spindle::qcow {

class FlushRounds {
 public:
  // All must outlive this.
  struct Parts {
    ByteChannel* file;
    TableCache* l2_tables;
    L1Table* l1;
    const Allocator* allocator;
  };

  explicit FlushRounds(Parts parts) : parts_(parts) {}

  // Everything that completed before the call is durable when it returns OK.
  absl::Status flush();

  // If the cache is crowded with dirty slices: runs a round, or lets the one
  // that runs do it.  Called at the end of operations that dirty slices.
  absl::Status write_back_if_crowded();

 private:
  struct Snapshot {
    std::vector<DirtyPiece> l2;
    std::vector<L1Table::Piece> l1;
  };

  absl::Status run_round();
  absl::Status write_out(const Snapshot& snapshot);

  const Parts parts_;
  SharedRounds sharing_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_FLUSH_ROUNDS_H_

// Allocator: refcounts in memory, host clusters handed out and taken back.
//
// Refcounts live in cached slices of refcount blocks (TableCache); the refcount
// table is in memory whole.  Nothing here reads or writes the file under the
// allocator's mutex: an operation that needs a slice which is not resident
// leaves the lock, loads it, and starts over while it keeps the slice in
// memory.
//
// Placement is QEMU's: the lowest run of free clusters from a hint on, which a
// free lowers; a new refcount block goes behind the run that needed it.
//
// Order of updates (rule 2): a refcount is raised in the cache before the
// cluster is handed out, and lowered only by reclaim(), when nothing durable
// names the cluster, no request uses it and its hole is punched (rule 1).
//
// Thread safety: every method, from any thread, except where it says otherwise.
#ifndef SPINDLE_FORMATS_QCOW2_ALLOCATOR_H_
#define SPINDLE_FORMATS_QCOW2_ALLOCATOR_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_set.h"
#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/byte_channel.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/cluster/corruption.h"
#include "formats/cluster/in_flight.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/pending_frees.h"

namespace spindle::qcow2 {

// When a cluster that was freed, but not durably so, is used again.
enum class ReusePolicy {
  kLowest,  // before anything that lies higher: placement is QEMU's
  kLazy,    // when the file would outgrow its data otherwise
};

class Allocator {
 public:
  struct Options {
    ReusePolicy reuse = ReusePolicy::kLazy;
    // Pass freed clusters down as holes.
    bool punch_holes = true;
    // The file can be made longer.
    bool file_grows = true;
    // kLazy: how many bytes may wait before growth gives way to reuse.
    uint64_t lazy_slack_bytes = uint64_t{16} << 20;
  };

  // What the allocator works on; all must outlive it.
  struct Parts {
    const Geometry* geometry;
    ByteChannel* file;
    TableCache* refblocks;
    InFlight* in_flight;
    PendingFrees* pending;
    MetadataExtents* extents;
    Corruption* corruption;
    // Runs a flush round, so that drops become durable; called without locks.
    std::function<absl::Status()> run_flush_round;
    // Forgets cached copies of what lay in these clusters.
    std::function<void(HostClusters)> discard_copies;
  };

  Allocator(Parts parts, Options options);

  // What lies beyond the file's present end was never used; once, when the
  // image is opened.
  void note_file_end();
  // Reads the refcount table; before anything is allocated or freed.  The
  // table's place and size were validated with the header.
  absl::Status load(HostOffset table, uint64_t table_clusters);
  // The refcount blocks that the table names, for the overlap check.
  std::vector<HostOffset> refcount_blocks() const ABSL_LOCKS_EXCLUDED(mutex_);

  struct Allocation {
    HostClusters clusters;
    // Nothing was ever there: reads as zeroes without being written.
    bool reads_as_zeroes = false;
  };
  // `count` adjacent clusters, each with a refcount of one.
  // Errors: kResourceExhausted if the format's limits are reached, kDataLoss if
  // the refcounts are damaged, those of the file.
  absl::StatusOr<Allocation> allocate(uint64_t count)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // As many of the `count` clusters from `first` on as are free, none at all if
  // that one is in use: for data that continue what lies right before it.
  // Errors: as allocate().
  absl::StatusOr<Allocation> allocate_at(uint64_t first, uint64_t count)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Counts one more reference to each of `clusters`, which are in use.
  // Errors: kResourceExhausted if a count would pass the format's limit,
  // kDataLoss if one is zero; no count has changed then.
  absl::Status add_references(HostClusters clusters)
      ABSL_LOCKS_EXCLUDED(mutex_);

  struct PackedBytes {
    HostOffset host;
    // The clusters that the bytes touch, each with a reference for them.
    HostClusters clusters;
  };
  // `bytes` bytes, behind those of the last such call if there is room: where
  // the data of one compressed cluster go.  Given back by free_unpublished() or
  // as what was dropped, by `clusters`.  REQUIRES: 0 < bytes < a cluster.
  // Errors: as allocate().
  absl::StatusOr<PackedBytes> allocate_bytes(uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Takes back clusters of allocate() that no table entry ever named.
  void free_unpublished(HostClusters clusters) ABSL_LOCKS_EXCLUDED(mutex_);

  // Makes what is pending allocatable if it can be, with a flush round.  True
  // if there is more to allocate than before.
  absl::StatusOr<bool> recover_pending() ABSL_LOCKS_EXCLUDED(mutex_);

  // Gives up the references to clusters that are durably dropped and unused.
  // Called by the flush round, one at a time.
  absl::Status reclaim() ABSL_LOCKS_EXCLUDED(mutex_);

  // For a resize, while nothing else uses the image and nothing is dirty or
  // pending (allocator_shrink.cc).
  // Drops refcount blocks that count nothing but themselves.  After an error
  // the image has them still.
  absl::Status drop_unused_blocks() ABSL_LOCKS_EXCLUDED(mutex_);
  // Cuts off what lies behind the last cluster in use, durably.
  absl::Status trim_file() ABSL_LOCKS_EXCLUDED(mutex_);

  // For the flush round: changed entries of the refcount table, which go to the
  // disk after the blocks that they name.
  struct TableEntry {
    HostOffset where;
    uint64_t index = 0;
    uint64_t value = 0;
  };
  std::vector<TableEntry> take_dirty_table() ABSL_LOCKS_EXCLUDED(mutex_);
  void restore(const std::vector<TableEntry>& entries)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // Tables are about to name `clusters`, which allocate() gave.
  void note_published(HostClusters clusters);
  // How long the file must be to hold every cluster that tables came to name
  // since it was opened.
  uint64_t published_end_bytes() const;
  // True if `clusters` reach beyond the file as it was opened and everything
  // that was handed out since: nothing valid can lie there.
  bool is_beyond_high_water(HostClusters clusters) const;

  // The refcount of a cluster, for tests and checks.
  absl::StatusOr<uint64_t> refcount(uint64_t cluster)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // What a locked step says: done, or what it needs done without the lock.
  struct Step {
    enum class Need { kNothing, kSlice, kBlock, kReclaim, kFailed };

    static Step done() { return {Need::kNothing, {}, 0, 0, {}}; }
    static Step slice_at(HostOffset host) {
      return {Need::kSlice, host, 0, 0, {}};
    }
    static Step block(uint64_t index, uint64_t search_from) {
      return {Need::kBlock, {}, index, search_from, {}};
    }
    static Step reclaim() { return {Need::kReclaim, {}, 0, 0, {}}; }
    static Step failed(absl::Status status) {
      return {Need::kFailed, {}, 0, 0, std::move(status)};
    }

    Need need = Need::kNothing;
    HostOffset slice;          // kSlice
    uint64_t block_index = 0;  // kBlock
    uint64_t search_from =
        0;                // kBlock: first cluster that may become the block
    absl::Status status;  // kFailed
  };
  // Slices kept resident while an operation starts over.
  using HeldSlices = absl::InlinedVector<SliceRef, 4>;

  // Repeats `attempt`, which locks for itself, for a run of `run_clusters`,
  // until it needs nothing more.
  // It is told whether it may ask for kReclaim.
  absl::StatusOr<Allocation> allocate_with(
      uint64_t run_clusters,
      absl::FunctionRef<Step(bool may_reclaim, Allocation* allocation)> attempt)
      ABSL_LOCKS_EXCLUDED(mutex_);
  Step try_allocate_locked(uint64_t count, bool may_reclaim,
                           Allocation* allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step try_allocate_at_locked(HostClusters wanted, bool may_reclaim,
                              Allocation* allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The tail of both: checks, counts and hands out `clusters`, which are free.
  Step take_locked(HostClusters clusters, bool may_reclaim,
                   Allocation* allocation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step find_run_locked(uint64_t from, uint64_t count, uint64_t* first)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // First cluster at or after `cluster`, below `limit`, that is in use; scans
  // one slice at most and says how far it got in *scanned_to.
  Step scan_free_locked(uint64_t cluster, uint64_t limit, uint64_t* free_until,
                        uint64_t* scanned_to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step prepare_slices_locked(HostClusters clusters, HeldSlices* slices)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Hands `visit` each of `slices`, which prepare_slices_locked() found for
  // `clusters`, with its part of them; stops at what is not done.
  Step visit_refcounts_locked(
      HostClusters clusters, const HeldSlices& slices,
      absl::FunctionRef<Step(Slice* slice, HostClusters part)> visit)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step change_slice_locked(Slice* slice, HostClusters part, int delta)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step check_may_add(Slice* slice, HostClusters part) const;
  Step change_refcounts_locked(HostClusters clusters, int delta)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step add_references_locked(HostClusters clusters)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool is_reserved_locked(uint64_t cluster) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Raises one of the two marks below.
  void raise(std::atomic<uint64_t>* mark, uint64_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Enters that `clusters` are in use.
  void note_use_locked(HostClusters clusters)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status check_run_locked(HostClusters clusters) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status check_hole(HostClusters clusters) const;
  bool wants_reclaim_locked(uint64_t first, uint64_t count) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  HostOffset block_of_locked(uint64_t cluster) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The slice that holds the refcount of `cluster`, given its block.
  HostOffset slice_of(HostOffset block, uint64_t cluster) const;
  uint64_t entries_per_slice() const;

  // allocator_shrink.cc.
  struct BlockUse {
    uint64_t block = 0;  // its cluster; 0: there is none
    uint64_t end = 0;    // one past the last cluster it counts; 0: none
    bool counts_others = false;
  };
  absl::StatusOr<BlockUse> use_of_block(uint64_t index)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // One past the last cluster in use.
  absl::StatusOr<uint64_t> find_used_end() ABSL_LOCKS_EXCLUDED(mutex_);

  // allocator_packing.cc: space for compressed clusters.
  Step try_pack_locked(uint64_t bytes, bool may_reclaim, PackedBytes* packed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step check_packing_end_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Step take_for_packing_locked(HostOffset host, uint64_t fresh,
                               bool may_reclaim)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void stop_packing_into(uint64_t cluster) ABSL_LOCKS_EXCLUDED(mutex_);
  void stop_packing_into_locked(uint64_t cluster)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // allocator_growth.cc: new refcount blocks and tables.
  absl::Status add_block(uint64_t block_index, uint64_t search_from)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status add_block_alone(uint64_t block_index, uint64_t search_from)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<uint64_t> reserve_cluster(uint64_t search_from)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status zero_clusters(HostClusters clusters, Purpose purpose);
  absl::Status hook_up_block(uint64_t block_index, uint64_t cluster)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status grow_table(uint64_t block_index, uint64_t cluster)
      ABSL_LOCKS_EXCLUDED(mutex_);
  struct GrowthPlan;
  absl::StatusOr<GrowthPlan> plan_growth(uint64_t block_index, uint64_t cluster)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status write_growth(const GrowthPlan& plan);
  absl::Status switch_table(HostClusters table) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status write_table_fields(HostClusters table);
  void begin_structure_change() ABSL_LOCKS_EXCLUDED(mutex_);
  void end_structure_change() ABSL_LOCKS_EXCLUDED(mutex_);

  absl::Status reclaim_ready() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<bool> are_last_references(uint64_t cluster, int references)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status change_refcounts(HostClusters clusters, int delta)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Repeats `attempt` until it asks for something else than a slice.
  // Errors: those of reading slices.
  absl::StatusOr<Step> with_slices(uint64_t run_clusters,
                                   absl::FunctionRef<Step()> attempt)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status load_slice(HostOffset slice, HeldSlices* held,
                          uint64_t run_clusters = 1);

  const Parts parts_;
  const Options options_;
  const Geometry& geometry_;

  // One past the highest cluster ever handed out, or the file's end at open.
  // Changed under mutex_; read anywhere.
  std::atomic<uint64_t> high_water_{0};
  // One past the highest cluster handed out since the file was opened, or 0.
  std::atomic<uint64_t> allocated_end_{0};
  // ... that a table names, or is about to.
  std::atomic<uint64_t> published_end_{0};

  // Which clusters are free, and where the refcount blocks are.
  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::allocator)
      ABSL_ACQUIRED_BEFORE(lock_ranks::cache_shard){LockRank::kAllocator};
  // Host offsets of refcount blocks; 0 for none.
  std::vector<uint64_t> table_ ABSL_GUARDED_BY(mutex_);
  HostOffset table_host_ ABSL_GUARDED_BY(mutex_);
  uint64_t table_clusters_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_set<uint64_t> dirty_table_ ABSL_GUARDED_BY(mutex_);
  // No cluster below it is free (except where an exact run was searched).
  uint64_t next_free_ ABSL_GUARDED_BY(mutex_) = 0;
  // Where the bytes that were packed last end, inside a cluster that is in use;
  // 0: nowhere that could be continued.
  HostOffset packing_end_ ABSL_GUARDED_BY(mutex_);
  // Clusters that become refcount blocks or tables; not free, not yet counted.
  std::vector<HostClusters> reserved_ ABSL_GUARDED_BY(mutex_);
  // One thread at a time adds blocks or moves the table.
  bool structure_changing_ ABSL_GUARDED_BY(mutex_) = false;
  absl::CondVar structure_changed_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_ALLOCATOR_H_

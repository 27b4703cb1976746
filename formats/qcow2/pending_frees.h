// PendingFrees: host clusters on their way from "an entry named it" to
// "allocatable".
//
// The order for a freed cluster (rule 1): entry dropped; drop durable; last pin
// gone, and cached copies discarded; refcount decremented and hole punched;
// allocatable.  This class holds the clusters in the first three states; each
// mention of a cluster stands for one reference to give up.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_PENDING_FREES_H_
#define SPINDLE_FORMATS_QCOW2_PENDING_FREES_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/cluster/in_flight.h"
#include "formats/qcow2/address.h"

namespace spindle::qcow2 {

class PendingFrees {
 public:
  // An entry that referred to `clusters` has been dropped from the cache, but
  // the disk may still name it.  Call it after the drop, never before.
  void add_dropped(HostClusters clusters);
  // Nothing durable names `clusters` any more.
  void add_durably_dropped(HostClusters clusters);

  // For a flush round, one at a time: what was dropped so far, which still
  // waits.  If the round makes the drops durable it passes them to
  // add_durable(), else to put_back().
  std::vector<HostClusters> take_dropped();
  void put_back(const std::vector<HostClusters>& dropped);
  void add_durable(const std::vector<HostClusters>& dropped);

  // Removes and returns, sorted, the clusters that are durably dropped and that
  // no request in flight uses.  Until end_reclaim() they are being reclaimed:
  // no longer waiting, not yet allocatable.  One caller at a time.
  std::vector<uint64_t> take_reclaimable(const InFlight& in_flight);
  void put_back_durable(const std::vector<uint64_t>& clusters);
  // Those that were not put back are allocatable.
  void end_reclaim();

  // How many references wait.  Approximate while others add and take.
  uint64_t count() const { return count_.load(std::memory_order_acquire); }
  // ... or are being reclaimed: what an allocation can hope for if it waits.
  uint64_t count_to_come() const {
    // In this order: what is on its way is counted twice rather than not.
    const uint64_t waiting = count();
    return waiting + reclaiming_count_.load(std::memory_order_acquire);
  }
  // The lowest cluster among those (none: the largest number).
  uint64_t lowest() const;

 private:
  mutable MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::pending_frees)
      ABSL_ACQUIRED_BEFORE(lock_ranks::inflated_copies){
          LockRank::kPendingFrees};
  std::vector<HostClusters> dropped_ ABSL_GUARDED_BY(mutex_);
  // From take_dropped() to add_durable() or put_back().
  std::vector<HostClusters> in_round_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> durable_ ABSL_GUARDED_BY(mutex_);
  // From take_reclaimable() to end_reclaim().
  std::vector<uint64_t> reclaiming_ ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> reclaiming_count_{0};
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_PENDING_FREES_H_

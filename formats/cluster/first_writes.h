// FirstWrites: guest clusters whose mapping is being changed.
//
// Whatever changes the mapping of a guest cluster (a first write, a discard,
// zeroes) holds a change over it; changes that overlap wait for each other,
// others do not (rule 5).  A first write into a cluster that needs no padding
// lets later writes to the same cluster join: each writes its own bytes to the
// host cluster that was chosen, and the first of them to finish publishes the
// mapping for all, so a sequential writer of small blocks does not block a
// worker per block.
//
// With subclusters, a change within clusters that are the image's own covers
// no more than whole subclusters, so that first writes to different ones go
// side by side.  Who joins publishes the subclusters of its own data, and the
// change lasts until all have: only those who are in it know which subclusters
// are being filled.
//
// Thread safety: every method, from any thread.  A thread that holds a change
// waits for no other, so waiting cannot form a circle.
#ifndef SPINDLE_FORMATS_CLUSTER_FIRST_WRITES_H_
#define SPINDLE_FORMATS_CLUSTER_FIRST_WRITES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "engine/sector.h"
#include "formats/cluster/address.h"
#include "formats/cluster/in_flight.h"

namespace spindle {

class FirstWrites {
 private:
  struct Change;

 public:
  // A share in a change.
  class Ticket {
   public:
    Ticket() = default;
    explicit operator bool() const { return change_ != nullptr; }
    // For those who joined: where the first byte of their data goes, and what
    // they publish if they finish first.
    HostOffset host() const { return host_; }
    ByteRange guest_clusters() const { return guest_clusters_; }
    HostClusters host_clusters() const { return host_clusters_; }

   private:
    friend class FirstWrites;
    std::shared_ptr<Change> change_;
    HostOffset host_;
    ByteRange guest_clusters_;
    HostClusters host_clusters_;
    InFlight::Pin pin_;
  };

  enum class Admission {
    kOwner,   // the change is the caller's to make
    kJoined,  // write the data to ticket->host(), then finish()
    kRetry,   // an overlapping change has ended meanwhile: look the mapping up
              // again
  };

  // `cluster_size` must outlive this.
  explicit FirstWrites(const ClusterSize* cluster_size)
      : cluster_size_(*cluster_size) {}

  // For a write of `data`, within `clusters`, to guest clusters, or
  // subclusters, that are not allocated.  May wait.  `in_flight` is null where
  // clusters are never freed.
  Admission enter(ByteRange clusters, ByteRange data, InFlight* in_flight,
                  Ticket* ticket);
  // For any other change: waits until nothing overlaps.
  Ticket enter_alone(ByteRange clusters);
  // The same without waiting: an empty ticket if something overlaps.
  Ticket try_enter_alone(ByteRange clusters);

  // The owner changes only `clusters`, the beginning of what it asked for:
  // others need not wait for the rest.
  void narrow(const Ticket& ticket, ByteRange clusters);
  // The owner has chosen host clusters for its (narrowed) range, and they need
  // no padding: others may join.  `each_publishes`: all publish, not only the
  // first to finish.  REQUIRES: the range is that of whole clusters.
  void let_others_join(const Ticket& ticket, HostClusters host,
                       bool each_publishes);

  enum class Outcome {
    kPublished,    // now or before, by whomever
    kUnpublished,  // the last to leave, and nobody published: the host clusters
                   // are the caller's to free
    kLeft,         // others are still at it
  };
  // Ends the caller's share.  If `succeeded` and nobody has published yet, or
  // each does, `publish` is called, which enters the mapping (under the lock of
  // this class; it may lock a slice and nothing else).
  Outcome finish(Ticket ticket, bool succeeded,
                 absl::FunctionRef<void()> publish);

 private:
  struct Change {
    ByteRange clusters;
    int users = 1;
    bool joinable = false;
    bool each_publishes = false;
    bool published = false;
    HostClusters host;
  };

  Ticket add_locked(ByteRange clusters) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Change* find_overlap_locked(ByteRange clusters) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void remove_locked(const Change* change)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const ClusterSize& cluster_size_;
  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::mapping_changes)
      ABSL_ACQUIRED_BEFORE(lock_ranks::flush){LockRank::kMappingChanges};
  // As many as there are threads at it: a short list.
  std::vector<std::shared_ptr<Change>> changes_ ABSL_GUARDED_BY(mutex_);
  absl::CondVar changed_;
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_FIRST_WRITES_H_

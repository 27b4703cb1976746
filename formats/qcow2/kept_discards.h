// KeptDiscards: discarded clusters that keep their host clusters
// (discard-no-unref), on the way to a hole in the file.
//
// The entry that says "zeroes" must be durable before the hole is there: what
// the durable metadata name is not destroyed (rule 1 of DESIGN.md).  Meanwhile,
// and afterwards, the next write to the guest cluster goes to the same host
// cluster.  So a hole is punched while nobody can change the guest cluster's
// entry (FirstWrites), if the entry still says so, if no other reference to the
// host cluster exists (COPIED), and once no request is under way there that
// found it before the discard.
//
// Discards are numbered.  A flush round notes last() before it takes its
// snapshot of the tables; when all that is durable, so are the discards up to
// that number, and no hole is punched for one that came later.
//
// Punching is advice: what fails, or cannot be looked up, is forgotten.
//
// Thread safety: every method, from any thread; no lock is held during I/O.
#ifndef SPINDLE_FORMATS_QCOW2_KEPT_DISCARDS_H_
#define SPINDLE_FORMATS_QCOW2_KEPT_DISCARDS_H_

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/synchronization/mutex.h"
#include "engine/sector.h"
#include "formats/cluster/first_writes.h"
#include "formats/cluster/in_flight.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/cluster_map.h"
#include "formats/qcow2/data_clusters.h"

namespace spindle::qcow2 {

class KeptDiscards {
 public:
  // All must outlive this.
  struct Parts {
    const Geometry* geometry;
    FirstWrites* first_writes;
    ClusterMap* map;
    InFlight* in_flight;
    const DataClusters* data_clusters;
  };

  explicit KeptDiscards(Parts parts) : parts_(parts) {}

  // The entry of the guest cluster at `guest` says in the cache that it is
  // zeroes, and still names `host`.
  // REQUIRES: the caller has the guest cluster's change (FirstWrites).
  void add(GuestOffset guest, HostOffset host);
  // The entry has been changed otherwise.  REQUIRES: as add().
  void remove(GuestOffset guest);

  // The number of the latest discard.
  uint64_t last() const;
  // Those up to the number `last` are durable.
  void end_round(uint64_t last);
  // Punches holes for what is durable.  What somebody is at is left for the
  // next time.  Waits for nobody.
  void punch();

 private:
  struct Discard {
    HostOffset host;
    uint64_t number = 0;
  };
  struct Hole {
    GuestOffset guest;
    Discard discard;
  };

  // Guest clusters that follow each other, not too many, of which something is
  // durable.
  std::vector<ByteRange> durable_runs() const;
  // Removes and returns what is durable in `guest`.
  std::vector<Hole> take_durable(ByteRange guest);
  void put_back(const Hole& hole);
  void punch_run(ByteRange guest);
  // True if the guest cluster is as its discard left it, and nobody else's.
  bool is_hole(const Hole& hole) const;

  const Parts parts_;
  mutable absl::Mutex mutex_;
  // By guest offset.
  absl::btree_map<uint64_t, Discard> discards_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t durable_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_KEPT_DISCARDS_H_

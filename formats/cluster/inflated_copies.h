// InflatedCopies: compressed clusters that were inflated lately, by the
// descriptor that names them, so that a sequential read inflates each once.
// The last few; a handful is enough.
//
// A copy is put in and taken out while its host clusters are pinned, and
// discarded before they are reused (rule 1), so it is never stale.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_CLUSTER_INFLATED_COPIES_H_
#define SPINDLE_FORMATS_CLUSTER_INFLATED_COPIES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/cluster/address.h"

namespace spindle {

class InflatedCopies {
 public:
  using Copy = std::shared_ptr<const std::vector<uint8_t>>;

  explicit InflatedCopies(size_t capacity) : capacity_(capacity) {}

  // `descriptor`: the table entry that names the cluster, as it stands there.
  Copy find(uint64_t descriptor);
  // `place`: the host clusters that the compressed data lie in.
  void insert(uint64_t descriptor, HostClusters place, Copy copy);
  // Forgets copies of what lies in `clusters`.
  void discard(HostClusters clusters);

 private:
  struct Kept {
    uint64_t descriptor = 0;
    HostClusters place;
    Copy copy;
  };
  const size_t capacity_;
  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::inflated_copies)
      ABSL_ACQUIRED_BEFORE(lock_ranks::end){LockRank::kInflatedCopies};
  // Most recently used first.
  std::vector<Kept> kept_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_INFLATED_COPIES_H_

// Compressed clusters: inflating one, and a few that were inflated lately.
//
// qcow2 specification, "Compressed Clusters Descriptor" and "Compression type":
// type 0 is raw deflate, type 1 is zstd.
//
// Thread safety: inflate_cluster is a pure function; InflatedCopies as it says.
#ifndef SPINDLE_FORMATS_QCOW2_INFLATE_H_
#define SPINDLE_FORMATS_QCOW2_INFLATE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {

// Inflates `compressed` into exactly `cluster`, which bounds the output and is
// all the memory that grows with it; what follows the end of the stream is
// ignored, as the descriptor counts sectors.
// `compression_type`: of the header, kCompressionZlib or kCompressionZstd.
// Errors: kDataLoss if the stream is damaged, or does not end exactly there.
absl::Status inflate_cluster(uint8_t compression_type,
                             absl::Span<const uint8_t> compressed,
                             absl::Span<uint8_t> cluster);

// Inflated clusters, by the descriptor that names them, so that a sequential
// read inflates each cluster once.  The last few; a handful is enough.
//
// A copy is put in and taken out while its host clusters are pinned, and
// discarded before they are reused (rule 1), so it is never stale.
//
// Thread safety: every method, from any thread.
class InflatedCopies {
 public:
  using Copy = std::shared_ptr<const std::vector<uint8_t>>;

  explicit InflatedCopies(size_t capacity) : capacity_(capacity) {}

  Copy find(L2Entry descriptor);
  void insert(L2Entry descriptor, Copy copy);
  // Forgets copies of what lies in `clusters`.
  void discard(HostClusters clusters, const Geometry& geometry);

 private:
  struct Kept {
    L2Entry descriptor;
    Copy copy;
  };
  const size_t capacity_;
  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::inflated_copies)
      ABSL_ACQUIRED_BEFORE(lock_ranks::end){LockRank::kInflatedCopies};
  // Most recently used first.
  std::vector<Kept> kept_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_INFLATE_H_

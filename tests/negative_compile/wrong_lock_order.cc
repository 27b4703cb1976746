// EXPECT: must be acquired before
//
// The two classes know nothing of each other: the order comes from the ranks,
// across the ones between theirs.
#include "absl/base/thread_annotations.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"

namespace spindle {

struct Flusher {
  MetadataMutex mutex ABSL_ACQUIRED_AFTER(lock_ranks::flush)
      ABSL_ACQUIRED_BEFORE(lock_ranks::allocator){LockRank::kFlush};
};

struct L1Table {
  MetadataMutex mutex ABSL_ACQUIRED_AFTER(lock_ranks::l1_table)
      ABSL_ACQUIRED_BEFORE(lock_ranks::metadata_extents){LockRank::kL1Table};
};

void use(Flusher* flusher, L1Table* table) {
#ifdef SPINDLE_BREAK_THE_RULE
  MetadataLock second(&table->mutex);
  MetadataLock first(&flusher->mutex);
#else
  MetadataLock first(&flusher->mutex);
  MetadataLock second(&table->mutex);
#endif
}

}  // namespace spindle

// The order of locks, as the compiler checks it.
//
// One mutex per LockRank that is declared here and defined nowhere: nobody can
// lock it, only annotations name it.  A real mutex of rank R stands between its
// own rank and the next,
//
//   MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::flush)
//       ABSL_ACQUIRED_BEFORE(lock_ranks::allocator){LockRank::kFlush};
//
// and so before every mutex of a later rank, in whatever class that is.  Clang
// sees it with -Wthread-safety-beta; debug builds assert the same at run time.
//
// Thread safety: there is nothing to call.
#ifndef SPINDLE_ENGINE_LOCK_RANKS_H_
#define SPINDLE_ENGINE_LOCK_RANKS_H_

#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {
namespace lock_ranks {

extern MetadataMutex mapping_changes;
extern MetadataMutex flush ABSL_ACQUIRED_AFTER(mapping_changes);
extern MetadataMutex allocator ABSL_ACQUIRED_AFTER(flush);
extern MetadataMutex cache_shard ABSL_ACQUIRED_AFTER(allocator);
extern MetadataMutex slice ABSL_ACQUIRED_AFTER(cache_shard);
extern MetadataMutex dirty_slices ABSL_ACQUIRED_AFTER(slice);
extern MetadataMutex l1_table ABSL_ACQUIRED_AFTER(dirty_slices);
extern MetadataMutex metadata_extents ABSL_ACQUIRED_AFTER(l1_table);
extern MetadataMutex pending_frees ABSL_ACQUIRED_AFTER(metadata_extents);
extern MetadataMutex inflated_copies ABSL_ACQUIRED_AFTER(pending_frees);
// After every rank: what the last real ones stand before.
extern MetadataMutex end ABSL_ACQUIRED_AFTER(inflated_copies);

}  // namespace lock_ranks
}  // namespace spindle

#endif  // SPINDLE_ENGINE_LOCK_RANKS_H_

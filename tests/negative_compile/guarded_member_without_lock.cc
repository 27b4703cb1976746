// EXPECT: writing variable 'count_' requires holding mutex 'mutex_'
#include "absl/base/thread_annotations.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Counter {
 public:
  void add() ABSL_LOCKS_EXCLUDED(mutex_) {
#ifndef SPINDLE_BREAK_THE_RULE
    MetadataLock lock(&mutex_);
#endif
    ++count_;
  }

 private:
  MetadataMutex mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::allocator)
      ABSL_ACQUIRED_BEFORE(lock_ranks::cache_shard){LockRank::kAllocator};
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void use(Counter* counter) { counter->add(); }

}  // namespace spindle

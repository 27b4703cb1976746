// EXPECT: calling function 'add_locked' requires holding mutex 'mutex_'
#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Counter {
 public:
  void add() ABSL_LOCKS_EXCLUDED(mutex_) {
#ifndef SPINDLE_BREAK_THE_RULE
    MetadataLock lock(&mutex_);
#endif
    add_locked();
  }

 private:
  void add_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { ++count_; }

  MetadataMutex mutex_{LockRank::kAllocator};
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void use(Counter* counter) { counter->add(); }

}  // namespace spindle

// EXPECT: mutex 'mutex_' is still held at the end of function
#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Counter {
 public:
  void add() ABSL_LOCKS_EXCLUDED(mutex_) {
    mutex_.lock();
    ++count_;
#ifndef SPINDLE_BREAK_THE_RULE
    mutex_.unlock();
#endif
  }

 private:
  MetadataMutex mutex_{LockRank::kAllocator};
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void use(Counter* counter) { counter->add(); }

}  // namespace spindle

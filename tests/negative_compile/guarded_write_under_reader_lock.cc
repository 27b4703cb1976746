// EXPECT: writing variable 'count_' requires holding mutex 'mutex_' exclusively
#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Counter {
 public:
  void add() ABSL_LOCKS_EXCLUDED(mutex_) {
#ifdef SPINDLE_BREAK_THE_RULE
    MetadataReaderLock lock(&mutex_);
#else
    MetadataLock lock(&mutex_);
#endif
    ++count_;
  }

 private:
  MetadataMutex mutex_{LockRank::kAllocator};
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void use(Counter* counter) { counter->add(); }

}  // namespace spindle

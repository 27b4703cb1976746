// EXPECT: writing variable 'count_' requires holding mutex
//
// What runs on the pool does not run under the lock of who sent it there.
#include <functional>

#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Counter {
 public:
  std::function<void()> later() ABSL_LOCKS_EXCLUDED(mutex_) {
    MetadataLock lock(&mutex_);
#ifdef SPINDLE_BREAK_THE_RULE
    return [this] { ++count_; };
#else
    return [this] { add(); };
#endif
  }
  void add() ABSL_LOCKS_EXCLUDED(mutex_) {
    MetadataLock lock(&mutex_);
    ++count_;
  }

 private:
  MetadataMutex mutex_{LockRank::kAllocator};
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

void use(Counter* counter) { counter->later()(); }

}  // namespace spindle

// EXPECT: cannot call function 'write_back' while mutex 'mutex_' is held
#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Cache {
 public:
  // File I/O: never under the lock that other requests need.
  void write_back() ABSL_LOCKS_EXCLUDED(mutex_);

  void evict() ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      MetadataLock lock(&mutex_);
      dirty_ = false;
#ifdef SPINDLE_BREAK_THE_RULE
      write_back();
#endif
    }
    write_back();
  }

 private:
  MetadataMutex mutex_{LockRank::kCacheShard};
  bool dirty_ ABSL_GUARDED_BY(mutex_) = true;
};

void use(Cache* cache) { cache->evict(); }

}  // namespace spindle

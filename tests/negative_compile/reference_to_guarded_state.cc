// EXPECT: returning variable 'name_' by reference requires holding mutex
#include <string>

#include "absl/base/thread_annotations.h"
#include "engine/metadata_mutex.h"

namespace spindle {

class Named {
 public:
#ifdef SPINDLE_BREAK_THE_RULE
  const std::string& name() ABSL_LOCKS_EXCLUDED(mutex_) {
#else
  std::string name() ABSL_LOCKS_EXCLUDED(mutex_) {
#endif
    MetadataLock lock(&mutex_);
    return name_;
  }

 private:
  MetadataMutex mutex_{LockRank::kAllocator};
  std::string name_ ABSL_GUARDED_BY(mutex_);
};

std::string use(Named* named) { return named->name(); }

}  // namespace spindle

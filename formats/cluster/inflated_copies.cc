#include "formats/cluster/inflated_copies.h"

#include <algorithm>
#include <utility>

namespace spindle {

InflatedCopies::Copy InflatedCopies::find(uint64_t descriptor) {
  MetadataLock lock(&mutex_);
  const auto found = std::find_if(
      kept_.begin(), kept_.end(),
      [&](const Kept& kept) { return kept.descriptor == descriptor; });
  if (found == kept_.end()) return nullptr;
  std::rotate(kept_.begin(), found, found + 1);
  return kept_.front().copy;
}

void InflatedCopies::insert(uint64_t descriptor, HostClusters place,
                            Copy copy) {
  MetadataLock lock(&mutex_);
  const bool is_kept = std::any_of(
      kept_.begin(), kept_.end(),
      [&](const Kept& kept) { return kept.descriptor == descriptor; });
  if (is_kept) return;
  if (kept_.size() >= capacity_) kept_.pop_back();
  kept_.insert(kept_.begin(), Kept{descriptor, place, std::move(copy)});
}

void InflatedCopies::discard(HostClusters clusters) {
  MetadataLock lock(&mutex_);
  std::erase_if(kept_, [&](const Kept& kept) {
    return kept.place.first < clusters.end() &&
           clusters.first < kept.place.end();
  });
}

}  // namespace spindle

#include "formats/qcow2/pending_frees.h"

#include <algorithm>

namespace spindle::qcow2 {

void PendingFrees::add_dropped(HostClusters clusters) {
  if (clusters.count == 0) return;
  MetadataLock lock(&mutex_);
  dropped_.push_back(clusters);
  count_.fetch_add(clusters.count, std::memory_order_relaxed);
}

void PendingFrees::add_durably_dropped(HostClusters clusters) {
  MetadataLock lock(&mutex_);
  for (uint64_t i = 0; i < clusters.count; ++i)
    durable_.push_back(clusters.first + i);
  count_.fetch_add(clusters.count, std::memory_order_relaxed);
}

std::vector<HostClusters> PendingFrees::take_dropped() {
  MetadataLock lock(&mutex_);
  in_round_.clear();
  in_round_.swap(dropped_);
  return in_round_;
}

void PendingFrees::put_back(const std::vector<HostClusters>& dropped) {
  MetadataLock lock(&mutex_);
  dropped_.insert(dropped_.end(), dropped.begin(), dropped.end());
  in_round_.clear();
}

void PendingFrees::add_durable(const std::vector<HostClusters>& dropped) {
  MetadataLock lock(&mutex_);
  for (const HostClusters& clusters : dropped) {
    for (uint64_t i = 0; i < clusters.count; ++i)
      durable_.push_back(clusters.first + i);
  }
  in_round_.clear();
}

std::vector<uint64_t> PendingFrees::take_reclaimable(
    const InFlight& in_flight) {
  std::vector<uint64_t> taken;
  MetadataLock lock(&mutex_);
  std::erase_if(durable_, [&](uint64_t cluster) {
    if (in_flight.is_pinned(cluster)) return false;
    taken.push_back(cluster);
    return true;
  });
  std::sort(taken.begin(), taken.end());
  reclaiming_ = taken;
  reclaiming_count_.store(taken.size(), std::memory_order_release);
  count_.fetch_sub(taken.size(), std::memory_order_release);
  return taken;
}

void PendingFrees::end_reclaim() {
  MetadataLock lock(&mutex_);
  reclaiming_.clear();
  reclaiming_count_.store(0, std::memory_order_release);
}

void PendingFrees::put_back_durable(const std::vector<uint64_t>& clusters) {
  MetadataLock lock(&mutex_);
  durable_.insert(durable_.end(), clusters.begin(), clusters.end());
  count_.fetch_add(clusters.size(), std::memory_order_relaxed);
}

uint64_t PendingFrees::lowest() const {
  MetadataLock lock(&mutex_);
  uint64_t lowest = std::numeric_limits<uint64_t>::max();
  for (const HostClusters& clusters : dropped_)
    lowest = std::min(lowest, clusters.first);
  for (const HostClusters& clusters : in_round_)
    lowest = std::min(lowest, clusters.first);
  for (uint64_t cluster : durable_) lowest = std::min(lowest, cluster);
  for (uint64_t cluster : reclaiming_) lowest = std::min(lowest, cluster);
  return lowest;
}

}  // namespace spindle::qcow2

#include "engine/device_counters.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "engine/thread_shard.h"

namespace spindle {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

size_t LatencyHistogram::bucket_of(int64_t nanoseconds) {
  const uint64_t microseconds =
      nanoseconds <= 0 ? 0 : static_cast<uint64_t>(nanoseconds) / 1000;
  return std::min<size_t>(std::bit_width(microseconds), kBuckets - 1);
}

uint64_t LatencyHistogram::count() const {
  uint64_t sum = 0;
  for (uint64_t bucket : buckets) sum += bucket;
  return sum;
}

absl::Duration LatencyHistogram::percentile(double p) const {
  const uint64_t all = count();
  if (all == 0) return absl::ZeroDuration();
  const double exact_rank = std::ceil(static_cast<double>(all) * p / 100.0);
  const uint64_t rank =
      std::clamp<uint64_t>(static_cast<uint64_t>(exact_rank), 1, all);
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    seen += buckets[i];
    if (seen >= rank) return absl::Microseconds(int64_t{1} << i);
  }
  return absl::InfiniteDuration();
}

ShardedDeviceCounters::Shard& ShardedDeviceCounters::shard() {
  return shards_[thread_shard() % kShards];
}

void ShardedDeviceCounters::count(RequestKind kind, uint64_t bytes,
                                  const absl::Status& status,
                                  int64_t nanoseconds, bool ran_in_place) {
  KindCounters& counters = shard().by_kind[static_cast<size_t>(kind)];
  counters
      .buckets[ran_in_place ? 1 : 0][LatencyHistogram::bucket_of(nanoseconds)]
      .fetch_add(1, kRelaxed);
  if (status.ok()) {
    if (bytes != 0) counters.bytes.fetch_add(bytes, kRelaxed);
  } else if (absl::IsCancelled(status)) {
    counters.cancelled.fetch_add(1, kRelaxed);
  } else {
    counters.errors.fetch_add(1, kRelaxed);
  }
}

DeviceCounters ShardedDeviceCounters::sum() const {
  DeviceCounters sum;
  for (const Shard& shard : shards_) {
    for (size_t kind = 0; kind < kRequestKindCount; ++kind) {
      const KindCounters& from = shard.by_kind[kind];
      RequestCounters& to = sum.by_kind[kind];
      to.bytes += from.bytes.load(kRelaxed);
      to.errors += from.errors.load(kRelaxed);
      to.cancelled += from.cancelled.load(kRelaxed);
      for (size_t i = 0; i < LatencyHistogram::kBuckets; ++i) {
        const uint64_t in_place = from.buckets[1][i].load(kRelaxed);
        sum.ran_in_place += in_place;
        to.latency.buckets[i] += from.buckets[0][i].load(kRelaxed) + in_place;
      }
    }
  }
  for (RequestCounters& counters : sum.by_kind)
    counters.requests = counters.latency.count();
  return sum;
}

}  // namespace spindle

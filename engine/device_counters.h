// DeviceCounters: what a device has done so far, and how long it took.
//
// Thread safety: LatencyHistogram, RequestCounters and DeviceCounters are
// values.  ShardedDeviceCounters may be used from any thread; threads count in
// shards that few of them share.
#ifndef SPINDLE_ENGINE_DEVICE_COUNTERS_H_
#define SPINDLE_ENGINE_DEVICE_COUNTERS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/request.h"

namespace spindle {

// Latencies in powers of two: bucket i counts requests that took less than
// 2^i microseconds and at least 2^(i-1) (bucket 0: less than one).
struct LatencyHistogram {
  static constexpr size_t kBuckets = 32;
  std::array<uint64_t, kBuckets> buckets{};

  // The last bucket takes what is longer than all.
  static size_t bucket_of(int64_t nanoseconds);
  uint64_t count() const;
  // An upper bound of the p-th percentile, 0 < p <= 100; zero if empty.
  absl::Duration percentile(double p) const;
};

struct RequestCounters {
  uint64_t requests = 0;  // completed, whatever their status
  uint64_t bytes = 0;     // of those that succeeded
  uint64_t errors = 0;
  uint64_t cancelled = 0;
  LatencyHistogram latency;  // from submission to completion
};

struct DeviceCounters {
  std::array<RequestCounters, kRequestKindCount> by_kind{};
  uint64_t ran_in_place = 0;
  const RequestCounters& of(RequestKind kind) const {
    return by_kind[static_cast<size_t>(kind)];
  }
};

class ShardedDeviceCounters {
 public:
  ShardedDeviceCounters() = default;
  ShardedDeviceCounters(const ShardedDeviceCounters&) = delete;
  ShardedDeviceCounters& operator=(const ShardedDeviceCounters&) = delete;

  void count(RequestKind kind, uint64_t bytes, const absl::Status& status,
             int64_t nanoseconds, bool ran_in_place = false);

  // The sum of the shards; requests that end meanwhile may be in it or not.
  DeviceCounters sum() const;

 private:
  static constexpr size_t kShards = 8;
  // Every request is in exactly one latency bucket, so their sum is the number
  // of requests.
  using Buckets = std::array<std::atomic<uint64_t>, LatencyHistogram::kBuckets>;
  struct KindCounters {
    std::atomic<uint64_t> bytes{0};
    std::atomic<uint64_t> errors{0};
    std::atomic<uint64_t> cancelled{0};
    // Indexed by whether the request ran in place.
    std::array<Buckets, 2> buckets{};
  };
  struct alignas(64) Shard {
    std::array<KindCounters, kRequestKindCount> by_kind;
  };

  Shard& shard();

  std::array<Shard, kShards> shards_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_DEVICE_COUNTERS_H_

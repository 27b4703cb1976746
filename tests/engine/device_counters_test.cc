#include "engine/device_counters.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(LatencyHistogram, BucketsArePowersOfTwo) {
  EXPECT_EQ(LatencyHistogram::bucket_of(-1), 0u);
  EXPECT_EQ(LatencyHistogram::bucket_of(999), 0u);
  EXPECT_EQ(LatencyHistogram::bucket_of(1000), 1u);
  EXPECT_EQ(LatencyHistogram::bucket_of(1999), 1u);
  EXPECT_EQ(LatencyHistogram::bucket_of(2000), 2u);
  EXPECT_EQ(LatencyHistogram::bucket_of(INT64_MAX),
            LatencyHistogram::kBuckets - 1);
}

TEST(LatencyHistogram, PercentileIsAnUpperBound) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.percentile(50), absl::ZeroDuration());
  histogram.buckets[0] = 90;
  histogram.buckets[4] = 9;
  histogram.buckets[10] = 1;
  EXPECT_EQ(histogram.count(), 100u);
  EXPECT_EQ(histogram.percentile(50), absl::Microseconds(1));
  EXPECT_EQ(histogram.percentile(90), absl::Microseconds(1));
  EXPECT_EQ(histogram.percentile(91), absl::Microseconds(16));
  EXPECT_EQ(histogram.percentile(100), absl::Microseconds(1024));
}

TEST(DeviceCounters, AddUpOverThreads) {
  ShardedDeviceCounters counters;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&counters] {
      for (int n = 0; n < 1000; ++n) {
        counters.count(RequestKind::kRead, 512, absl::OkStatus(), 1500);
        counters.count(RequestKind::kWrite, 512, absl::DataLossError("no"), 10);
        counters.count(RequestKind::kFlush, 0, absl::CancelledError(""), 10);
      }
      counters.count(RequestKind::kRead, 512, absl::OkStatus(), 1500,
                     /*ran_in_place=*/true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const DeviceCounters sum = counters.sum();
  EXPECT_EQ(sum.of(RequestKind::kRead).requests, 4004u);
  EXPECT_EQ(sum.of(RequestKind::kRead).bytes, 4004u * 512);
  EXPECT_EQ(sum.of(RequestKind::kRead).errors, 0u);
  EXPECT_EQ(sum.of(RequestKind::kRead).latency.buckets[1], 4004u);
  EXPECT_EQ(sum.of(RequestKind::kWrite).errors, 4000u);
  EXPECT_EQ(sum.of(RequestKind::kWrite).bytes, 0u);
  EXPECT_EQ(sum.of(RequestKind::kFlush).cancelled, 4000u);
  EXPECT_EQ(sum.of(RequestKind::kFlush).errors, 0u);
  EXPECT_EQ(sum.ran_in_place, 4u);
}

}  // namespace
}  // namespace spindle

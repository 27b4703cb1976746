#include "tools/bench_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_device.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/support/memory_driver.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

using ::spindle::testing::MemoryDriver;

constexpr uint64_t kLength = uint64_t{1} << 20;

// Remembers what it was asked for.
class RecordingDriver final : public MemoryDriver {
 public:
  // No try_read: every request reaches read() or write().
  RecordingDriver()
      : MemoryDriver(Options{.length_bytes = kLength,
                             .capabilities = {Capability::kSetLength}}) {}

  absl::Status read(const IoVector& qiov, Sector sector) override {
    note(sector);
    return MemoryDriver::read(qiov, sector);
  }
  absl::Status write(const IoVector& qiov, Sector sector) override {
    note(sector);
    return MemoryDriver::write(qiov, sector);
  }
  absl::Status flush() override {
    absl::MutexLock lock(&mu_);
    ++flushes_;
    return absl::OkStatus();
  }

  // Sorted: the pool may reorder.
  std::vector<uint64_t> offsets() {
    absl::MutexLock lock(&mu_);
    std::sort(offsets_.begin(), offsets_.end());
    return offsets_;
  }
  uint64_t flushes() {
    absl::MutexLock lock(&mu_);
    return flushes_;
  }

 private:
  void note(Sector sector) {
    absl::MutexLock lock(&mu_);
    offsets_.push_back(sector.byte_offset());
  }

  absl::Mutex mu_;
  std::vector<uint64_t> offsets_ ABSL_GUARDED_BY(mu_);
  uint64_t flushes_ ABSL_GUARDED_BY(mu_) = 0;
};

class BenchRunnerTest : public ::testing::Test {
 protected:
  BenchRunnerTest()
      : executor_(make_executor({.width = 4})),
        driver_(std::make_shared<RecordingDriver>()),
        // The driver sees each request by itself.
        device_(*BlockDevice::create(driver_, executor_.get(),
                                     {.merge_bytes = 0})) {}

  const std::unique_ptr<Executor> executor_;
  const std::shared_ptr<RecordingDriver> driver_;
  const std::unique_ptr<BlockDevice> device_;
};

TEST_F(BenchRunnerTest, ReadsEachStepOnce) {
  BenchOptions options;
  options.request_count = 100;
  options.depth = 8;
  options.offset = 8192;
  options.step_bytes = 512;
  const auto result = run_bench(device_.get(), options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->operations, 100u);
  std::vector<uint64_t> expected;
  for (uint64_t i = 0; i < 100; ++i) expected.push_back(8192 + i * 512);
  EXPECT_EQ(driver_->offsets(), expected);
  EXPECT_EQ(driver_->flushes(), 0u);
}

TEST_F(BenchRunnerTest, WrapsAtTheEnd) {
  BenchOptions options;
  options.request_count = 2 * kLength / 4096;
  ASSERT_TRUE(run_bench(device_.get(), options).ok());
  std::vector<uint64_t> expected;
  for (uint64_t offset = 0; offset < kLength; offset += 4096) {
    expected.insert(expected.end(), {offset, offset});
  }
  EXPECT_EQ(driver_->offsets(), expected);
}

TEST_F(BenchRunnerTest, WritesThePattern) {
  BenchOptions options;
  options.write = true;
  options.pattern = 0xa5;
  options.request_count = kLength / 4096;
  ASSERT_TRUE(run_bench(device_.get(), options).ok());
  std::vector<uint8_t> content(kLength);
  ASSERT_TRUE(
      device_->read(IoVector(content.data(), content.size()), Sector(0)).ok());
  EXPECT_EQ(std::count(content.begin(), content.end(), 0xa5),
            static_cast<int64_t>(kLength));
}

TEST_F(BenchRunnerTest, FlushesAtTheInterval) {
  for (bool drain : {true, false}) {
    const uint64_t before = driver_->flushes();
    BenchOptions options;
    options.write = true;
    options.depth = 4;
    options.request_count = 100;
    options.flush_interval = 10;
    options.drain_on_flush = drain;
    const auto result = run_bench(device_.get(), options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->operations, 100u);
    if (drain) {
      EXPECT_EQ(driver_->flushes() - before, 10u);
    } else {
      EXPECT_GE(driver_->flushes() - before, 1u);
      EXPECT_LE(driver_->flushes() - before, 10u);
    }
  }
}

TEST_F(BenchRunnerTest, RandomOffsetsRepeatWithTheSeed) {
  BenchOptions options;
  options.random = true;
  options.request_count = 64;
  options.seed = 7;
  ASSERT_TRUE(run_bench(device_.get(), options).ok());
  const std::vector<uint64_t> first = driver_->offsets();
  ASSERT_TRUE(run_bench(device_.get(), options).ok());
  std::vector<uint64_t> twice = first;
  twice.insert(twice.end(), first.begin(), first.end());
  std::sort(twice.begin(), twice.end());
  EXPECT_EQ(driver_->offsets(), twice);
  EXPECT_GT(first.back(), first.front());
  for (uint64_t offset : first) EXPECT_EQ(offset % 4096, 0u);
}

TEST_F(BenchRunnerTest, CountsLatenciesWhereAsked) {
  BenchOptions options;
  options.request_count = 50;
  EXPECT_EQ(run_bench(device_.get(), options)->latency.count(), 0u);
  options.measure_latency = true;
  EXPECT_EQ(run_bench(device_.get(), options)->latency.count(), 50u);
}

TEST_F(BenchRunnerTest, ReportsProgress) {
  BenchOptions options;
  options.request_count = 5000;
  uint64_t last = 0;
  options.progress = [&last](uint64_t completed) {
    EXPECT_GT(completed, last);
    last = completed;
  };
  ASSERT_TRUE(run_bench(device_.get(), options).ok());
  EXPECT_GT(last, 0u);
}

TEST_F(BenchRunnerTest, ReportsTheFirstError) {
  BenchOptions options;
  options.offset = kLength - 512;
  options.step_bytes = 512;
  options.request_count = 100;
  EXPECT_EQ(run_bench(device_.get(), options).status().code(),
            absl::StatusCode::kOutOfRange);
}

TEST_F(BenchRunnerTest, RefusesNoDepth) {
  BenchOptions options;
  options.depth = 0;
  EXPECT_EQ(run_bench(device_.get(), options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(FineHistogram, PercentilesAreWithinASixteenth) {
  FineHistogram histogram;
  EXPECT_EQ(histogram.percentile(50), absl::ZeroDuration());
  for (int i = 1; i <= 1000; ++i) histogram.add(absl::Microseconds(i));
  EXPECT_EQ(histogram.count(), 1000u);
  for (double p : {1.0, 50.0, 99.0, 99.9, 100.0}) {
    const absl::Duration exact = absl::Microseconds(p * 10);
    EXPECT_GE(histogram.percentile(p), exact) << p;
    EXPECT_LE(histogram.percentile(p), exact * (17.0 / 16.0)) << p;
  }
}

}  // namespace
}  // namespace spindle

#include "engine/jobs/compare.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/filter_driver.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

using Kind = CompareResult::Kind;
using testing::MemoryDriver;

constexpr uint64_t kMib = uint64_t{1} << 20;

// Cannot be read from `bad` on.
class BadDriver : public FilterDriver {
 public:
  BadDriver(std::shared_ptr<BlockDriver> child, uint64_t bad)
      : FilterDriver(std::move(child)), bad_(bad) {}
  absl::Status read(const IoVector& qiov, Sector sector) override {
    if (sector.byte_offset() + qiov.length_bytes() > bad_)
      return absl::DataLossError("bad");
    return FilterDriver::read(qiov, sector);
  }

 private:
  const uint64_t bad_;
};

class CompareImages : public ::testing::Test {
 protected:
  std::shared_ptr<MemoryDriver> memory(uint64_t length_bytes) {
    MemoryDriver::Options options;
    options.length_bytes = length_bytes;
    return std::make_shared<MemoryDriver>(options);
  }
  std::unique_ptr<BlockDevice> device(std::shared_ptr<BlockDriver> driver) {
    auto made = BlockDevice::create(std::move(driver), executor_.get());
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }
  CompareResult compare(std::shared_ptr<BlockDriver> a,
                        std::shared_ptr<BlockDriver> b, bool strict = false) {
    options_.strict = strict;
    options_.job.executor = executor_.get();
    const auto first = device(std::move(a));
    const auto second = device(std::move(b));
    return compare_images(*first, *second, options_);
  }

  const std::unique_ptr<Executor> executor_ = make_executor({});
  CompareOptions options_;
};

TEST_F(CompareImages, FindsTheFirstSectorThatIsNotTheSame) {
  const auto a = memory(100 * kMib);
  const auto b = memory(100 * kMib);
  for (const auto& disk : {a, b}) {
    disk->set_content(3 * kMib, std::string(kMib, 'x'));
    disk->set_content(90 * kMib, std::string(kMib, 'y'));
  }
  EXPECT_EQ(compare(a, b).kind, Kind::kIdentical);
  b->set_content(95 * kMib + 700, "z");
  b->set_content(90 * kMib + 1025, "z");
  CompareResult result = compare(a, b);
  EXPECT_EQ(result.kind, Kind::kContentMismatch);
  EXPECT_EQ(result.offset, 90 * kMib + 1024);
  b->set_content(kMib + 5, "z");
  result = compare(a, b);
  EXPECT_EQ(result.offset, kMib);
  EXPECT_EQ(compare(b, a).offset, kMib);
}

TEST_F(CompareImages, WhatIsLongerMayBeZeroes) {
  const auto a = memory(10 * kMib);
  const auto b = memory(30 * kMib);
  CompareResult result = compare(a, b);
  EXPECT_EQ(result.kind, Kind::kIdentical);
  EXPECT_TRUE(result.reached_longer_part);
  EXPECT_EQ(compare(b, a, /*strict=*/true).kind, Kind::kLengthMismatch);
  b->set_content(20 * kMib, "x");
  result = compare(a, b);
  EXPECT_EQ(result.kind, Kind::kContentMismatch);
  EXPECT_EQ(result.offset, 20 * kMib);
  EXPECT_TRUE(result.reached_longer_part);
  a->set_content(0, "x");
  EXPECT_FALSE(compare(a, b).reached_longer_part);
}

TEST_F(CompareImages, StrictLooksAtWhatIsAllocated) {
  const auto a = memory(kMib);
  const auto b = memory(kMib);
  a->set_content(0, std::string(65536, '\0'));
  EXPECT_EQ(compare(a, b).kind, Kind::kIdentical);
  EXPECT_EQ(compare(a, b, /*strict=*/true).kind, Kind::kStatusMismatch);
}

TEST_F(CompareImages, SaysWhichImageCannotBeRead) {
  const auto a = memory(10 * kMib);
  const auto b = memory(10 * kMib);
  for (const auto& disk : {a, b})
    disk->set_content(0, std::string(10 * kMib, 'x'));
  CompareResult result = compare(a, std::make_shared<BadDriver>(b, 5 * kMib));
  EXPECT_EQ(result.kind, Kind::kReadFailed);
  EXPECT_EQ(result.failed_image, 1);
  EXPECT_EQ(result.failure.message(), "bad");
  EXPECT_LE(result.offset, 5 * kMib);
  // What comes first counts.
  a->set_content(kMib, "y");
  result = compare(a, std::make_shared<BadDriver>(b, 5 * kMib));
  EXPECT_EQ(result.kind, Kind::kContentMismatch);
}

TEST_F(CompareImages, CanBeCancelled) {
  std::atomic<bool> cancelled{true};
  options_.job.cancelled = &cancelled;
  EXPECT_EQ(compare(memory(kMib), memory(kMib)).kind, Kind::kCancelled);
}

}  // namespace
}  // namespace spindle

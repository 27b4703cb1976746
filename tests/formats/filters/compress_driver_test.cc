#include "formats/filters/compress_driver.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace {

using testing::MemoryImage;
using testing::reads_as;
using testing::write_fill;

constexpr uint64_t kCluster = 65536;

// The image's driver, which the MemoryImage owns.
std::shared_ptr<BlockDriver> borrow(MemoryImage& image) {
  return {std::shared_ptr<void>(), &image.driver()};
}

std::shared_ptr<BlockDriver> compress(MemoryImage& image) {
  auto driver = CompressDriver::create(borrow(image));
  EXPECT_TRUE(driver.ok()) << driver.status();
  return *std::move(driver);
}

bool is_compressed(BlockDriver& driver, uint64_t offset) {
  const auto status =
      driver.block_status({offset, 1}, BlockStatusScope::kThisLayer);
  return status.ok() && status->compressed;
}

TEST(CompressDriver, NeedsAFormatThatCompresses) {
  const auto driver =
      CompressDriver::create(std::make_shared<testing::MemoryDriver>());
  EXPECT_EQ(driver.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(driver.status().message(),
            "Compression is not supported for underlying format: memory");
}

TEST(CompressDriver, WholeClustersGoOutCompressed) {
  MemoryImage image({});
  const auto driver = compress(image);
  EXPECT_FALSE(driver->capabilities().has(Capability::kTryWrite));
  EXPECT_TRUE(write_fill(*driver, {0, 2 * kCluster}, 7).ok());
  EXPECT_TRUE(reads_as(*driver, {0, 2 * kCluster}, 7));
  EXPECT_TRUE(is_compressed(*driver, 0));
  EXPECT_TRUE(is_compressed(*driver, kCluster));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CompressDriver, PartsOfClustersKeepTheRest) {
  MemoryImage image({.backing = std::string(1 << 20, '\x05')});
  const auto driver = compress(image);
  EXPECT_TRUE(write_fill(*driver, {4096, 512}, 1).ok());
  EXPECT_TRUE(write_fill(*driver, {kCluster - 512, 1024}, 2).ok());
  EXPECT_TRUE(reads_as(*driver, {0, 4096}, 5));
  EXPECT_TRUE(reads_as(*driver, {4096, 512}, 1));
  EXPECT_TRUE(reads_as(*driver, {4608, kCluster - 512 - 4608}, 5));
  EXPECT_TRUE(reads_as(*driver, {kCluster - 512, 1024}, 2));
  EXPECT_TRUE(reads_as(*driver, {kCluster + 512, kCluster - 512}, 5));
  EXPECT_TRUE(is_compressed(*driver, 0));
  EXPECT_TRUE(is_compressed(*driver, kCluster));
  EXPECT_FALSE(is_compressed(*driver, 2 * kCluster));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CompressDriver, TheLastClusterMayBeShort) {
  const uint64_t size = 3 * kCluster + 1024;
  MemoryImage image({.size_bytes = size});
  const auto driver = compress(image);
  EXPECT_TRUE(write_fill(*driver, {3 * kCluster, 1024}, 3).ok());
  EXPECT_TRUE(write_fill(*driver, {3 * kCluster + 512, 512}, 4).ok());
  EXPECT_TRUE(reads_as(*driver, {3 * kCluster, 512}, 3));
  EXPECT_TRUE(reads_as(*driver, {3 * kCluster + 512, 512}, 4));
  EXPECT_TRUE(is_compressed(*driver, 3 * kCluster));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CompressDriver, ZeroesAndDiscardsPassThrough) {
  MemoryImage image({});
  const auto driver = compress(image);
  EXPECT_TRUE(write_fill(*driver, {0, 2 * kCluster}, 7).ok());
  EXPECT_TRUE(driver->write_zeroes({0, kCluster}, {}).ok());
  EXPECT_TRUE(driver->discard({kCluster, kCluster}).ok());
  EXPECT_TRUE(reads_as(*driver, {0, 2 * kCluster}, 0));
  EXPECT_FALSE(is_compressed(*driver, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CompressDriver, AnErrorLeavesTheClusterAsItWas) {
  for (const Purpose purpose :
       {Purpose::kReadCompressed, Purpose::kWriteCompressed}) {
    MemoryImage image({.open = {{"cache-size", "64k"}}});
    const auto driver = compress(image);
    EXPECT_TRUE(write_fill(*driver, {0, kCluster}, 7).ok());
    image.file().fail_at({.purpose = purpose}, EIO);
    const absl::Status status = write_fill(*driver, {512, 512}, 8);
    // What was read before may still be in memory.
    EXPECT_TRUE(purpose != Purpose::kWriteCompressed || !status.ok());
    image.file().clear_failures();
    EXPECT_TRUE(reads_as(*driver, {0, 512}, 7));
    EXPECT_TRUE(reads_as(*driver, {512, 512}, status.ok() ? 8 : 7));
    EXPECT_TRUE(reads_as(*driver, {1024, kCluster - 1024}, 7));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

// Two writes of parts of one cluster: the second must read what the first
// wrote, or its part is lost.
TEST(CompressDriver, WritesOfOneClusterTakeTurns) {
  MemoryImage image({});
  const auto driver = compress(image);
  const auto stop =
      image.file().stop_at({.purpose = Purpose::kWriteCompressed});
  std::thread first(
      [&] { EXPECT_TRUE(write_fill(*driver, {0, 512}, 1).ok()); });
  stop->wait_until_reached();
  absl::Notification done;
  std::thread second([&] {
    EXPECT_TRUE(write_fill(*driver, {512, 512}, 2).ok());
    done.Notify();
  });
  // Another cluster need not wait.
  EXPECT_TRUE(write_fill(*driver, {kCluster, 512}, 3).ok());
  EXPECT_FALSE(done.WaitForNotificationWithTimeout(absl::Milliseconds(100)));
  stop->resume();
  first.join();
  second.join();
  EXPECT_TRUE(reads_as(*driver, {0, 512}, 1));
  EXPECT_TRUE(reads_as(*driver, {512, 512}, 2));
  EXPECT_TRUE(reads_as(*driver, {kCluster, 512}, 3));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CompressDriver, ManyThreadsWriteTheirOwnSectors) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 20;
  MemoryImage image({});
  const auto driver = compress(image);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&driver, t] {
      for (int round = 1; round <= kRounds; ++round) {
        const uint64_t cluster = static_cast<uint64_t>(round % 2) * kCluster;
        const ByteRange own{cluster + static_cast<uint64_t>(t) * 512, 512};
        EXPECT_TRUE(
            write_fill(*driver, own, static_cast<uint8_t>(16 * t + 1)).ok());
        EXPECT_TRUE(reads_as(*driver, own, static_cast<uint8_t>(16 * t + 1)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int t = 0; t < kThreads; ++t) {
    const uint64_t at = static_cast<uint64_t>(t) * 512;
    EXPECT_TRUE(reads_as(*driver, {at, 512}, static_cast<uint8_t>(16 * t + 1)));
  }
  EXPECT_TRUE(image.close_and_check().ok());
}

}  // namespace
}  // namespace spindle

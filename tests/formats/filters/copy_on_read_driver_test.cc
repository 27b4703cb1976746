#include "formats/filters/copy_on_read_driver.h"

#include <errno.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/errors.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle {
namespace {

using testing::MemoryDriver;
using testing::MemoryImage;
using testing::ObservingDriver;
using testing::reads_as;
using testing::write_fill;

constexpr uint64_t kCluster = 65536;
constexpr uint8_t kBacking = 9;
constexpr absl::Duration kAWhile = absl::Milliseconds(100);

// An overlay of 1 MiB whose backing file has content in its first half, and an
// observer between the filter and the image.
struct Overlay {
  Overlay()
      : image({.backing = std::string(512 << 10, kBacking)}),
        observed(std::make_shared<ObservingDriver>(std::shared_ptr<BlockDriver>(
            std::shared_ptr<void>(), &image.driver()))) {
    auto created = CopyOnReadDriver::create(observed, "");
    EXPECT_TRUE(created.ok()) << created.status();
    driver = *std::move(created);
  }

  uint64_t copies() const { return observed->count(Purpose::kCorWrite); }
  BlockStatus status(uint64_t offset) {
    return *image.driver().block_status({offset, (1 << 20) - offset},
                                        BlockStatusScope::kThisLayer);
  }

  MemoryImage image;
  const std::shared_ptr<ObservingDriver> observed;
  std::shared_ptr<BlockDriver> driver;
};

TEST(CopyOnReadDriver, AReadCopiesItsWholeClusters) {
  Overlay overlay;
  EXPECT_FALSE(overlay.driver->capabilities().has(Capability::kTryRead));
  EXPECT_FALSE(overlay.status(0).allocated);
  EXPECT_TRUE(reads_as(*overlay.driver, {4096, 512}, kBacking));
  EXPECT_EQ(overlay.copies(), 1u);
  const BlockStatus first = overlay.status(0);
  EXPECT_TRUE(first.allocated && first.data);
  EXPECT_EQ(first.length, kCluster);
  EXPECT_FALSE(overlay.status(kCluster).allocated);
  // Now it is the image's own: nothing is left to copy, nor to read below.
  const uint64_t below = overlay.image.backing().total_count();
  EXPECT_TRUE(reads_as(*overlay.driver, {0, kCluster}, kBacking));
  EXPECT_EQ(overlay.copies(), 1u);
  EXPECT_EQ(overlay.image.backing().total_count(), below);
  EXPECT_TRUE(overlay.image.close_and_check().ok());
}

TEST(CopyOnReadDriver, ZeroesBecomeZeroClusters) {
  Overlay overlay;
  const uint64_t hole = 768 << 10;
  EXPECT_TRUE(reads_as(*overlay.driver, {hole, 512}, 0));
  const BlockStatus status = overlay.status(hole);
  EXPECT_TRUE(status.allocated && status.zero && !status.data);
  EXPECT_EQ(status.length, kCluster);
  EXPECT_TRUE(overlay.image.close_and_check().ok());
}

TEST(CopyOnReadDriver, KeepsWhatTheImageHas) {
  Overlay overlay;
  EXPECT_TRUE(overlay.image.write({kCluster, kCluster}, 3).ok());
  EXPECT_TRUE(overlay.driver->write_zeroes({2 * kCluster, kCluster}, {}).ok());
  std::string all = *testing::read_bytes(*overlay.driver, {0, 4 * kCluster});
  EXPECT_EQ(all, std::string(kCluster, kBacking) + std::string(kCluster, 3) +
                     std::string(kCluster, 0) +
                     std::string(kCluster, kBacking));
  EXPECT_EQ(overlay.copies(), 2u);
  for (const uint64_t index : {0, 1, 3}) {
    EXPECT_TRUE(overlay.status(index * kCluster).data) << index;
  }
  EXPECT_TRUE(overlay.status(2 * kCluster).zero);
  EXPECT_TRUE(overlay.image.close_and_check().ok());
}

TEST(CopyOnReadDriver, ALongReadIsCopiedInChunks) {
  MemoryImage image(
      {.size_bytes = 5 << 20, .backing = std::string(5 << 20, kBacking)});
  const auto driver =
      CopyOnReadDriver::create({std::shared_ptr<void>(), &image.driver()}, "");
  ASSERT_TRUE(driver.ok());
  const ByteRange most{512, (5 << 20) - 1024};
  EXPECT_TRUE(reads_as(**driver, most, kBacking));
  const auto status =
      image.driver().block_status({0, 5 << 20}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->allocated);
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CopyOnReadDriver, TheEndOfTheImageMayBeRagged) {
  const uint64_t size = 2 * kCluster + 512;
  MemoryImage image(
      {.size_bytes = size, .backing = std::string(size, kBacking)});
  const auto driver =
      CopyOnReadDriver::create({std::shared_ptr<void>(), &image.driver()}, "");
  ASSERT_TRUE(driver.ok());
  EXPECT_TRUE(reads_as(**driver, {2 * kCluster, 512}, kBacking));
  const auto status = image.driver().block_status({2 * kCluster, 512},
                                                  BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->allocated);
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(CopyOnReadDriver, RefusesWhatItCannotWriteTo) {
  const auto read_only =
      std::make_shared<MemoryDriver>(MemoryDriver::Options{.read_only = true});
  EXPECT_EQ(CopyOnReadDriver::create(read_only, "").status().code(),
            absl::StatusCode::kPermissionDenied);
  Overlay overlay;
  const absl::Status status =
      CopyOnReadDriver::create(overlay.observed, "nobody").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(
      absl::StrContains(status.message(), "Bottom node 'nobody' not found"))
      << status;
}

// The name of the memory that stands for the backing file is its own.
TEST(CopyOnReadDriver, CopiesOnlyWhatLiesAboveTheBottom) {
  Overlay overlay;
  const std::string bottom = overlay.image.driver().backing()->filename();
  const auto driver = CopyOnReadDriver::create(overlay.observed, bottom);
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_TRUE(reads_as(**driver, {0, 512}, kBacking));
  EXPECT_EQ(overlay.copies(), 1u);
  EXPECT_TRUE(overlay.image.close_and_check().ok());
}

bool take_snapshot(BlockDriver& driver, const std::string& name) {
  SnapshotInfo wanted;
  wanted.name = name;
  return driver.create_snapshot(wanted).ok();
}

// ---- Errors -----------------------------------------------------------------

// Whatever access fails: the read fails or is right, and the image is whole.
TEST(CopyOnReadDriver, AnErrorAnywhereLeavesTheImageAsItWas) {
  for (int nth = 1;; ++nth) {
    Overlay overlay;
    overlay.image.file().fail_at({}, EIO, nth);
    const auto bytes = testing::read_bytes(*overlay.driver, {4096, 4096});
    const bool failed = overlay.image.file().failure_count() > 0;
    overlay.image.file().clear_failures();
    if (bytes.ok()) {
      EXPECT_EQ(*bytes, std::string(4096, kBacking));
    }
    EXPECT_TRUE(reads_as(*overlay.driver, {0, 2 * kCluster}, kBacking));
    EXPECT_TRUE(overlay.image.close_and_check(testing::Leaks::kAllowed).ok())
        << nth;
    if (!failed) break;
    ASSERT_LT(nth, 100);
  }
}

TEST(CopyOnReadDriver, AFailedCopyFailsTheRead) {
  Overlay overlay;
  overlay.observed->fail_at({.purpose = Purpose::kCorWrite}, ENOSPC);
  const auto bytes = testing::read_bytes(*overlay.driver, {0, 512});
  EXPECT_EQ(errno_of(bytes.status()), ENOSPC);
  EXPECT_FALSE(overlay.status(0).allocated);
  EXPECT_TRUE(reads_as(*overlay.driver, {0, 512}, kBacking));
}

// ---- Order ------------------------------------------------------------------

// A copy has read the old bytes and is about to write them; a guest's write to
// the same cluster must not be undone by it.
TEST(CopyOnReadDriver, AGuestsWriteWinsOverACopy) {
  const ByteRange part{1024, 512};
  for (const bool zeroes : {false, true}) {
    Overlay overlay;
    const auto stop =
        overlay.observed->stop_at({.purpose = Purpose::kCorWrite});
    std::thread reader(
        [&] { EXPECT_TRUE(reads_as(*overlay.driver, {0, 512}, kBacking)); });
    stop->wait_until_reached();
    absl::Notification written;
    std::thread writer([&] {
      const ByteRange range = zeroes ? ByteRange{0, kCluster} : part;
      EXPECT_TRUE((zeroes ? overlay.driver->write_zeroes(range, {})
                          : write_fill(*overlay.driver, range, 0))
                      .ok());
      written.Notify();
    });
    // Elsewhere nobody waits.
    EXPECT_TRUE(write_fill(*overlay.driver, {kCluster, 512}, 2).ok());
    EXPECT_TRUE(reads_as(*overlay.driver, {2 * kCluster, 512}, kBacking));
    EXPECT_FALSE(written.WaitForNotificationWithTimeout(kAWhile));
    stop->resume();
    reader.join();
    writer.join();
    EXPECT_TRUE(reads_as(*overlay.driver, {0, 1024}, zeroes ? 0 : kBacking));
    EXPECT_TRUE(reads_as(*overlay.driver, part, 0));
    EXPECT_TRUE(overlay.image.close_and_check().ok());
  }
}

TEST(CopyOnReadDriver, ACopyWaitsForAWriteThatRuns) {
  Overlay overlay;
  const auto stop =
      overlay.image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  std::thread writer(
      [&] { EXPECT_TRUE(write_fill(*overlay.driver, {0, kCluster}, 4).ok()); });
  stop->wait_until_reached();
  absl::Notification read;
  std::thread reader([&] {
    EXPECT_TRUE(reads_as(*overlay.driver, {0, 512}, 4));
    read.Notify();
  });
  EXPECT_FALSE(read.WaitForNotificationWithTimeout(kAWhile));
  stop->resume();
  writer.join();
  reader.join();
  EXPECT_EQ(overlay.copies(), 0u);
  EXPECT_TRUE(reads_as(*overlay.driver, {0, kCluster}, 4));
}

TEST(CopyOnReadDriver, TwoReadsOfOneClusterCopyItOnce) {
  Overlay overlay;
  const auto stop = overlay.observed->stop_at({.purpose = Purpose::kCorWrite});
  const auto read = [&] {
    EXPECT_TRUE(reads_as(*overlay.driver, {512, 512}, kBacking));
  };
  std::thread first(read);
  stop->wait_until_reached();
  std::thread second(read);
  absl::SleepFor(kAWhile);
  stop->resume();
  first.join();
  second.join();
  EXPECT_EQ(overlay.copies(), 1u);
}

// Else the copy would bring the old disk into the new one.
TEST(CopyOnReadDriver, ASnapshotIsNotAppliedInTheMidstOfACopy) {
  Overlay overlay;
  EXPECT_TRUE(write_fill(*overlay.driver, {0, kCluster}, 6).ok());
  EXPECT_TRUE(take_snapshot(*overlay.driver, "six"));
  EXPECT_TRUE(overlay.driver->write_zeroes({0, kCluster}, {}).ok());
  EXPECT_TRUE(overlay.driver->flush().ok());
  // The first cluster has 6 in the snapshot; here it shall be copied.
  EXPECT_TRUE(take_snapshot(*overlay.driver, "none"));
  MemoryImage& image = overlay.image;
  EXPECT_TRUE(image.driver().apply_snapshot("none").ok());
  const auto stop = overlay.observed->stop_at({.purpose = Purpose::kCorWrite});
  // The second cluster is of the backing file in both.
  EXPECT_TRUE(write_fill(image.driver(), {2 * kCluster, 512}, 1).ok());
  std::thread reader([&] {
    EXPECT_TRUE(reads_as(*overlay.driver, {kCluster, 512}, kBacking));
  });
  stop->wait_until_reached();
  absl::Notification applied;
  std::thread applier([&] {
    EXPECT_TRUE(overlay.driver->apply_snapshot("six").ok());
    applied.Notify();
  });
  EXPECT_FALSE(applied.WaitForNotificationWithTimeout(kAWhile));
  stop->resume();
  reader.join();
  applier.join();
  EXPECT_FALSE(overlay.status(kCluster).allocated);
  EXPECT_TRUE(reads_as(*overlay.driver, {0, kCluster}, 6));
  EXPECT_TRUE(image.close_and_check().ok());
}

// Each thread writes sectors of its own, among those of others, and reads
// everything: what it wrote stays, what nobody wrote is the backing file's.
TEST(CopyOnReadDriver, ManyThreadsReadAndWriteTheSameClusters) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kClusters = 8;
  Overlay overlay;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&overlay, t] {
      const auto value = static_cast<uint8_t>(t + 1);
      for (uint64_t i = 0; i < kClusters; ++i) {
        const uint64_t cluster = (i + 2 * t) % kClusters * kCluster;
        const ByteRange own{cluster + t * 1024, 512};
        const ByteRange nobodys{cluster + t * 1024 + 512, 512};
        EXPECT_TRUE(reads_as(*overlay.driver, nobodys, kBacking));
        EXPECT_TRUE(write_fill(*overlay.driver, own, value).ok());
        EXPECT_TRUE(reads_as(*overlay.driver, own, value));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t t = 0; t < kThreads; ++t) {
    for (uint64_t i = 0; i < kClusters; ++i) {
      const uint64_t at = i * kCluster + t * 1024;
      EXPECT_TRUE(
          reads_as(*overlay.driver, {at, 512}, static_cast<uint8_t>(t + 1)));
      EXPECT_TRUE(reads_as(*overlay.driver, {at + 512, 512}, kBacking));
    }
  }
  EXPECT_TRUE(overlay.image.close_and_check().ok());
}

}  // namespace
}  // namespace spindle

#include "formats/qcow2/flush_rounds.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::AccessMatch;
using testing::check_image_bytes;
using testing::Leaks;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::ObservingDriver;
using testing::OpenImage;
using testing::qemu_image_bytes;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;
constexpr AccessMatch kSyncs{.purpose = Purpose::kFlushToDisk};

constexpr ByteRange cluster(uint64_t index) {
  return {index * kCluster, kCluster};
}

// 64 MiB; the first 64 KiB are written, so their L2 table exists.
MemoryImageOptions small_image() {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 1 0 64k"});
  return options;
}
// 512-byte clusters, 64 of them to a refcount block.
MemoryImageOptions narrow_image() {
  MemoryImageOptions options;
  options.bytes =
      qemu_image_bytes(2 * kMib, "cluster_size=512,refcount_bits=64");
  return options;
}

uint64_t syncs(MemoryImage& image) {
  return image.file().count(Purpose::kFlushToDisk);
}

// Records what a round does, as "purpose purpose ...", repetitions left out.
class Recorder {
 public:
  explicit Recorder(ObservingDriver* file) : file_(file) {
    file_->set_hook([this](const Access& access) {
      absl::MutexLock lock(&mutex_);
      const std::string name(purpose_name(access.purpose));
      if (names_.empty() || names_.back() != name) names_.push_back(name);
      return absl::OkStatus();
    });
  }
  ~Recorder() { file_->set_hook(nullptr); }
  std::string take() {
    absl::MutexLock lock(&mutex_);
    std::string joined = absl::StrJoin(names_, " ");
    names_.clear();
    return joined;
  }

 private:
  ObservingDriver* const file_;
  absl::Mutex mutex_;
  std::vector<std::string> names_ ABSL_GUARDED_BY(mutex_);
};

// ---- How much, in which order -----------------------------------------------

TEST(FlushRounds, SyncsOnceAfterOverwritesOnly) {
  MemoryImage image(small_image());
  ASSERT_TRUE(image.write({0, 4096}, 2).ok());
  image.file().reset_counts();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(syncs(image), 1u);
  EXPECT_EQ(image.file().total_count(), 1u);
}

TEST(FlushRounds, SyncsTwiceAfterNewMappings) {
  MemoryImage image(small_image());
  ASSERT_TRUE(image.write(cluster(1), 2).ok());
  image.file().reset_counts();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(syncs(image), 2u);
  // And nothing is left.
  image.file().reset_counts();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(image.file().total_count(), 1u);
}

TEST(FlushRounds, SyncsOnceAfterDropsOnly) {
  MemoryImage image(small_image());
  ASSERT_TRUE(image.discard(cluster(0)).ok());
  image.file().reset_counts();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(syncs(image), 1u);
}

TEST(FlushRounds, SyncsThriceAfterANewRefcountBlock) {
  MemoryImage image(narrow_image());
  ASSERT_TRUE(image.write({0, 65536}, 2).ok());
  image.file().reset_counts();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(syncs(image), 3u);
}

TEST(FlushRounds, WritesRefcountsThenMappings) {
  MemoryImage image(small_image());
  Recorder recorder(&image.file());
  ASSERT_TRUE(image.write(cluster(1), 2).ok());
  recorder.take();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(recorder.take(),
            "refblock_update flush_to_disk l2_update flush_to_disk");
}

TEST(FlushRounds, HooksUpABlockBehindItsOwnSync) {
  MemoryImage image(narrow_image());
  Recorder recorder(&image.file());
  ASSERT_TRUE(image.write({0, 65536}, 2).ok());
  recorder.take();
  ASSERT_TRUE(image.flush().ok());
  const std::string order = recorder.take();
  EXPECT_TRUE(order.ends_with(
      "refblock_update flush_to_disk refblock_alloc_hookup flush_to_disk "
      "l2_update l1_update flush_to_disk"))
      << order;
}

TEST(FlushRounds, PunchesWhenTheDropIsDurable) {
  MemoryImage image(small_image());
  Recorder recorder(&image.file());
  ASSERT_TRUE(image.discard(cluster(0)).ok());
  recorder.take();
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(recorder.take(),
            "l2_update flush_to_disk refblock_load cluster_free");
  // The refcount goes out with the next round.
  ASSERT_TRUE(image.flush().ok());
  EXPECT_EQ(recorder.take(), "refblock_update flush_to_disk");
}

TEST(FlushRounds, ClosingLeavesNothingPending) {
  MemoryImage image(small_image());
  ASSERT_TRUE(image.write(cluster(3), 2).ok());
  ASSERT_TRUE(image.discard(cluster(0)).ok());
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(FlushRounds, ACrowdedCacheIsWrittenBackWithoutAFlush) {
  MemoryImageOptions options = narrow_image();
  // Each 32 KiB of the guest are another slice; 16 fit.
  options.open = {{"l2-cache-size", "8k"}};
  MemoryImage image(options);
  for (uint64_t i = 0; i < 60; ++i)
    ASSERT_TRUE(image.write({i * 32768, 512}, 5).ok());
  EXPECT_GT(image.file().count(Purpose::kL2Update), 0u);
  for (uint64_t i = 0; i < 60; ++i)
    EXPECT_TRUE(image.reads_as({i * 32768, 512}, 5));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(FlushRounds, AWriteBackThatFailsFailsTheFlushNotTheWrite) {
  MemoryImageOptions options = narrow_image();
  options.open = {{"l2-cache-size", "8k"}};
  MemoryImage image(options);
  image.file().fail_at({.purpose = Purpose::kL2Update}, EIO, 1,
                       ObservingDriver::Repeat::kFromThenOn);
  for (uint64_t i = 0; i < 60; ++i)
    ASSERT_TRUE(image.write({i * 32768, 512}, 5).ok());
  EXPECT_FALSE(image.flush().ok());
  image.file().clear_failures();
  EXPECT_TRUE(image.close_and_check().ok());
}

// ---- Errors -----------------------------------------------------------------

TEST(FlushRounds, AFailureAtAnyStepPutsEverythingBack) {
  const struct {
    Purpose purpose;
    int nth;
  } steps[] = {
      {Purpose::kRefblockUpdate, 1},
      {Purpose::kRefblockUpdate, 2},
      {Purpose::kFlushToDisk, 1},
      {Purpose::kRefblockAllocHookup, 1},
      {Purpose::kRefblockAllocHookup, 2},
      {Purpose::kFlushToDisk, 2},
      {Purpose::kL2Update, 1},
      {Purpose::kL2Update, 2},
      {Purpose::kL1Update, 1},
      {Purpose::kFlushToDisk, 3},
  };
  for (const auto& step : steps) {
    SCOPED_TRACE(absl::StrCat(purpose_name(step.purpose), " ", step.nth));
    MemoryImage image(narrow_image());
    // New tables, new blocks, and a cluster that was dropped.
    ASSERT_TRUE(image.write({0, 4096}, 1).ok());
    ASSERT_TRUE(image.flush().ok());
    ASSERT_TRUE(image.write({0, 131072}, 2).ok());
    ASSERT_TRUE(image.discard({0, 512}).ok());
    image.file().fail_at({.purpose = step.purpose}, EIO, step.nth);
    EXPECT_FALSE(image.flush().ok());
    EXPECT_EQ(image.file().failure_count(), 1u);
    EXPECT_TRUE(
        check_image_bytes(image.memory().content(), Leaks::kAllowed).ok());
    EXPECT_TRUE(image.reads_as({0, 512}, 0));
    EXPECT_TRUE(image.reads_as({512, 131072 - 512}, 2));
    // The next flush makes all of it durable.
    ASSERT_TRUE(image.flush().ok());
    const auto copy = image.open_copy(image.memory().content());
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_TRUE(testing::reads_as(**copy, {0, 512}, 0));
    EXPECT_TRUE(testing::reads_as(**copy, {512, 131072 - 512}, 2));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

TEST(FlushRounds, AFailedPunchIsNoError) {
  MemoryImage image(small_image());
  image.file().fail_at({.purpose = Purpose::kClusterFree}, EIO);
  ASSERT_TRUE(image.discard(cluster(0)).ok());
  EXPECT_TRUE(image.flush().ok());
  EXPECT_EQ(image.file().failure_count(), 1u);
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(FlushRounds, AReclaimThatCannotReadRefcountsIsTriedAgain) {
  MemoryImage image(small_image());
  image.file().fail_at({.purpose = Purpose::kRefblockLoad}, EIO);
  ASSERT_TRUE(image.discard(cluster(0)).ok());
  EXPECT_FALSE(image.flush().ok());
  EXPECT_TRUE(image.flush().ok());
  EXPECT_TRUE(image.close_and_check().ok());
}

// ---- Together ---------------------------------------------------------------

TEST(FlushRounds, ConcurrentFlushersShareARound) {
  constexpr int kOthers = 15;
  OpenImage open(qemu_image_bytes(64 * kMib, ""));
  FlushRounds& rounds = open.image->rounds();
  auto stop = open.file->stop_at(kSyncs);
  auto first = std::async(std::launch::async, [&] { return rounds.flush(); });
  stop->wait_until_reached();
  std::vector<std::future<absl::Status>> others;
  for (int i = 0; i < kOthers; ++i) {
    others.push_back(
        std::async(std::launch::async, [&] { return rounds.flush(); }));
  }
  while (rounds.waiting_count() != kOthers) std::this_thread::yield();
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  for (auto& other : others) EXPECT_TRUE(other.get().ok());
  // The round that ran, and one for all who came during it.
  EXPECT_EQ(open.file->count(Purpose::kFlushToDisk), 2u);
}

TEST(FlushRounds, WhoSharesARoundSharesItsError) {
  OpenImage open(qemu_image_bytes(64 * kMib, ""));
  FlushRounds& rounds = open.image->rounds();
  auto stop = open.file->stop_at(kSyncs);
  open.file->fail_at(kSyncs, EIO, 2);
  auto first = std::async(std::launch::async, [&] { return rounds.flush(); });
  stop->wait_until_reached();
  auto second = std::async(std::launch::async, [&] { return rounds.flush(); });
  auto third = std::async(std::launch::async, [&] { return rounds.flush(); });
  while (rounds.waiting_count() != 2) std::this_thread::yield();
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_FALSE(second.get().ok());
  EXPECT_FALSE(third.get().ok());
  EXPECT_TRUE(rounds.flush().ok());
}

TEST(FlushRounds, RequestsGoOnWhileAFlushWaitsForTheDisk) {
  MemoryImage image(small_image());
  ASSERT_TRUE(image.write(cluster(1), 2).ok());
  // Before the mappings are written, and after.
  for (int nth : {1, 2}) {
    ASSERT_TRUE(image.write(cluster(static_cast<uint64_t>(10 + nth)), 9).ok());
    auto stop = image.file().stop_at(kSyncs, nth);
    auto flush = std::async(std::launch::async, [&] { return image.flush(); });
    stop->wait_until_reached();
    const auto n = static_cast<uint8_t>(nth);
    EXPECT_TRUE(image.reads_as(cluster(1), 2));                // resident
    EXPECT_TRUE(image.reads_as({40 * kMib * n / 2, 512}, 0));  // a miss
    EXPECT_TRUE(image.write({0, 4096}, 3).ok());               // in place
    EXPECT_TRUE(image.write(cluster(20u + n), 4).ok());        // allocates
    EXPECT_TRUE(image.discard(cluster(10u + n)).ok());
    EXPECT_TRUE(image.reads_as(cluster(20u + n), 4));
    EXPECT_TRUE(image.reads_as(cluster(10u + n), 0));
    stop->resume();
    EXPECT_TRUE(flush.get().ok());
    EXPECT_TRUE(
        check_image_bytes(image.memory().content(), Leaks::kAllowed).ok());
  }
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(FlushRounds, AFlushThatComesDuringARoundCoversWhatCameBeforeIt) {
  MemoryImage image(small_image());
  auto stop = image.file().stop_at(kSyncs);
  auto first = std::async(std::launch::async, [&] { return image.flush(); });
  stop->wait_until_reached();
  ASSERT_TRUE(image.write(cluster(5), 7).ok());
  auto second = std::async(std::launch::async, [&] { return image.flush(); });
  stop->resume();
  ASSERT_TRUE(first.get().ok());
  ASSERT_TRUE(second.get().ok());
  const auto copy = image.open_copy(image.memory().content());
  ASSERT_TRUE(copy.ok());
  EXPECT_TRUE(testing::reads_as(**copy, cluster(5), 7));
}

}  // namespace
}  // namespace spindle::qcow2

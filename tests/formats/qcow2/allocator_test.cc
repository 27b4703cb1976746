#include "formats/qcow2/allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::check_image_bytes;
using testing::Leaks;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::OpenImage;
using testing::qemu_image_bytes;
using testing::set_big64;

constexpr uint64_t kMib = uint64_t{1} << 20;

// ---- Placement --------------------------------------------------------------

// An empty image of 64 KiB clusters uses four: header, refcount table, refcount
// block, L1 table.
TEST(Allocator, TakesTheLowestFreeRun) {
  OpenImage open(qemu_image_bytes(64 * kMib, ""));
  Allocator& allocator = open.image->allocator();
  const auto a = allocator.allocate(2);
  const auto b = allocator.allocate(3);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->clusters, (HostClusters{4, 2}));
  EXPECT_EQ(b->clusters, (HostClusters{6, 3}));
  for (uint64_t c = 0; c < 9; ++c) EXPECT_EQ(open.refcount(c), 1u) << c;
  EXPECT_EQ(open.refcount(9), 0u);
  // A free lowers the search; what does not fit the gap goes behind.
  allocator.free_unpublished({5, 1});
  EXPECT_EQ(open.refcount(5), 0u);
  EXPECT_EQ(allocator.allocate(2)->clusters, (HostClusters{9, 2}));
  allocator.free_unpublished({4, 1});
  EXPECT_EQ(allocator.allocate(1)->clusters, (HostClusters{4, 1}));
  EXPECT_EQ(allocator.allocate(1)->clusters, (HostClusters{5, 1}));
  EXPECT_EQ(open.file->lock_violation_count(), 0u);
}

TEST(Allocator, OnlyWhatWasNeverUsedReadsAsZeroes) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write 0 1M"}));
  Allocator& allocator = open.image->allocator();
  const auto fresh = allocator.allocate(1);
  ASSERT_TRUE(fresh.ok());
  EXPECT_TRUE(fresh->reads_as_zeroes);
  EXPECT_FALSE(allocator.is_beyond_high_water(fresh->clusters));
  EXPECT_TRUE(allocator.is_beyond_high_water({fresh->clusters.end(), 1}));
  allocator.free_unpublished(fresh->clusters);
  const auto again = allocator.allocate(1);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->clusters, fresh->clusters);
  EXPECT_FALSE(again->reads_as_zeroes);
}

TEST(Allocator, AFileThatCannotGrowIsFullAtItsEnd) {
  std::string bytes = qemu_image_bytes(64 * kMib, "");
  bytes.resize(6 * 65536);
  testing::MemoryDriver::Options fixed;
  fixed.capabilities.remove(Capability::kGrows);
  fixed.capabilities.remove(Capability::kSetLength);
  fixed.length_bytes = bytes.size();
  OpenImage open(bytes, {}, fixed);
  Allocator& allocator = open.image->allocator();
  EXPECT_TRUE(absl::IsResourceExhausted(allocator.allocate(3).status()));
  const auto last = allocator.allocate(2);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_FALSE(last->reads_as_zeroes);
  EXPECT_TRUE(absl::IsResourceExhausted(allocator.allocate(1).status()));
}

// The same writes, one at a time, by the other implementation and by us: the
// same bytes, data and metadata, in the same places.
TEST(Allocator, PlacesBlocksAndDataAsQemuDoes) {
  for (uint32_t bits : {1, 2, 4, 8, 16, 32, 64}) {
    // Enough for several refcount blocks, not for a longer refcount table.
    const uint64_t per_block = 4096 / bits;
    const uint64_t clusters = std::min<uint64_t>(per_block * 3, 1200);
    const std::string options =
        absl::StrCat("cluster_size=512,refcount_bits=", bits);
    std::vector<std::string> commands;
    std::mt19937_64 random(bits);
    std::vector<ByteRange> writes;
    for (uint64_t done = 0; done < clusters;) {
      const uint64_t count = 1 + random() % 40;
      // Within one L2 table: a request over two is one for each.
      const uint64_t at = random() % 32 * 64 + random() % (64 - count);
      writes.push_back({at * 512, count * 512});
      done += count;
    }
    for (size_t i = 0; i < writes.size(); ++i) {
      commands.push_back(absl::StrCat("write -P ", 1 + i % 250, " ",
                                      writes[i].offset, " ", writes[i].length));
    }
    const std::string theirs = qemu_image_bytes(kMib, options, commands);
    MemoryImageOptions ours;
    ours.bytes = qemu_image_bytes(kMib, options);
    ours.open = {{"reuse", "lowest"}};
    MemoryImage image(ours);
    for (size_t i = 0; i < writes.size(); ++i) {
      ASSERT_TRUE(
          image.write(writes[i], static_cast<uint8_t>(1 + i % 250)).ok());
    }
    ASSERT_TRUE(image.close().ok());
    EXPECT_TRUE(image.memory().content() == theirs) << bits << " bits";
    EXPECT_TRUE(
        check_image_bytes(image.memory().content(), Leaks::kForbidden).ok());
  }
}

// ---- Damaged refcounts ------------------------------------------------------

// 64 KiB clusters: the refcount block is cluster 2, 16 bits each.
std::string with_refcount(std::string bytes, uint64_t cluster, uint8_t value) {
  bytes[2 * 65536 + cluster * 2] = 0;
  bytes[2 * 65536 + cluster * 2 + 1] = static_cast<char>(value);
  return bytes;
}
bool is_marked_corrupt(const std::string& bytes) {
  return (bytes[79] & 2) != 0;
}

TEST(Allocator, NeverHandsOutMetadataThatCountsAsFree) {
  // Refcount 0 for the L1 table, then for the L2 table at cluster 4.
  const std::string written = qemu_image_bytes(64 * kMib, "", {"write 0 64k"});
  for (uint64_t cluster : {0, 1, 2, 3, 4}) {
    MemoryImageOptions options;
    options.bytes = with_refcount(written, cluster, 0);
    MemoryImage image(options);
    const absl::Status status = image.write({kMib, 65536}, 7);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(is_marked_corrupt(image.memory().content({0, 512})));
    // Everything but the mark is as it was.
    std::string after = image.memory().content();
    after[79] = options.bytes[79];
    EXPECT_TRUE(after == options.bytes) << cluster;
    // Writes are refused, also in place; reads go on.
    EXPECT_TRUE(absl::IsDataLoss(image.write({0, 512}, 7)));
    EXPECT_TRUE(image.reads_as({0, 65536}, 0xcd));
    EXPECT_TRUE(image.reads_as({kMib, 65536}, 0));
  }
}

TEST(Allocator, FreeingWhatIsFreeMarksTheImage) {
  const std::string written = qemu_image_bytes(64 * kMib, "", {"write 0 64k"});
  MemoryImageOptions options;
  options.bytes = with_refcount(written, 5, 0);  // the data cluster
  MemoryImage image(options);
  ASSERT_TRUE(image.discard({0, 65536}).ok());
  EXPECT_TRUE(absl::IsDataLoss(image.flush()));
  EXPECT_TRUE(is_marked_corrupt(image.memory().content({0, 512})));
  EXPECT_TRUE(absl::IsDataLoss(image.write({kMib, 512}, 7)));
}

TEST(Allocator, NeverPunchesMetadata) {
  // A crafted entry maps guest data onto the L1 table (cluster 3); a discard
  // would free it.
  std::string bytes = qemu_image_bytes(64 * kMib, "", {"write 0 64k"});
  set_big64(&bytes, 4 * 65536, uint64_t{1} << 63 | 3 * 65536);
  MemoryImageOptions options;
  options.bytes = bytes;
  MemoryImage image(options);
  ASSERT_TRUE(image.discard({0, 65536}).ok());
  EXPECT_TRUE(absl::IsDataLoss(image.flush()));
  EXPECT_TRUE(is_marked_corrupt(image.memory().content({0, 512})));
  const std::string after = image.memory().content();
  EXPECT_EQ(after.substr(3 * 65536, 65536), bytes.substr(3 * 65536, 65536));
}

// ---- Freeing ----------------------------------------------------------------

TEST(Allocator, AFreedClusterIsPunchedThenCountedDownThenReused) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 5 0 64k"});
  options.open = {{"reuse", "lowest"}};
  MemoryImage image(options);
  const auto host = image.host_of(0);
  ASSERT_TRUE(host.has_value());
  ASSERT_TRUE(image.discard({0, 65536}).ok());
  EXPECT_EQ(image.file().count(Purpose::kClusterFree), 0u);
  // The lowest candidate is pending: made durable first, then taken.
  ASSERT_TRUE(image.write({kMib, 65536}, 6).ok());
  EXPECT_EQ(image.file().count(Purpose::kClusterFree), 1u);
  EXPECT_EQ(image.host_of(kMib), host);
  ASSERT_TRUE(image.close_and_check().ok());
}

TEST(Allocator, LazyReuseTakesAnotherClusterFirst) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 5 0 64k"});
  MemoryImage image(options);
  const auto host = image.host_of(0);
  ASSERT_TRUE(image.discard({0, 65536}).ok());
  ASSERT_TRUE(image.write({kMib, 65536}, 6).ok());
  EXPECT_NE(image.host_of(kMib), host);
  EXPECT_EQ(image.file().count(Purpose::kFlushToDisk), 0u);
  ASSERT_TRUE(image.close_and_check().ok());
}

TEST(Allocator, AFullFileIsNotFullBeforeWhatIsPendingWasTried) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 5 0 1M"});
  options.max_file_bytes = options.bytes.size();
  MemoryImage image(options);
  EXPECT_TRUE(absl::IsResourceExhausted(image.write({2 * kMib, 65536}, 6)));
  ASSERT_TRUE(image.discard({0, 65536}).ok());
  EXPECT_TRUE(image.write({2 * kMib, 65536}, 6).ok());
  EXPECT_TRUE(image.reads_as({2 * kMib, 65536}, 6));
  ASSERT_TRUE(image.close_and_check(Leaks::kAllowed).ok());
}

// ---- Together ---------------------------------------------------------------

TEST(AllocatorStress, ThreadsNeverShareAClusterAndCountsAgree) {
  constexpr int kThreads = 4;
  const uint64_t seed = testing::test_seed();
  // Small clusters and wide refcounts: blocks are added all the time, and the
  // table moves.
  OpenImage open(
      qemu_image_bytes(8 * kMib, "cluster_size=512,refcount_bits=64"));
  Allocator& allocator = open.image->allocator();
  std::mutex mutex;
  std::set<uint64_t> owned;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      std::vector<HostClusters> mine;
      for (int i = 0; i < 800; ++i) {
        if (random() % 3 != 0 || mine.empty()) {
          const auto got = allocator.allocate(1 + random() % 12);
          ASSERT_TRUE(got.ok()) << got.status();
          const std::lock_guard<std::mutex> lock(mutex);
          for (uint64_t c = 0; c < got->clusters.count; ++c)
            ASSERT_TRUE(owned.insert(got->clusters.first + c).second);
          mine.push_back(got->clusters);
        } else {
          const HostClusters run = mine.back();
          mine.pop_back();
          {
            const std::lock_guard<std::mutex> lock(mutex);
            for (uint64_t c = 0; c < run.count; ++c) owned.erase(run.first + c);
          }
          allocator.free_unpublished(run);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t cluster : owned) ASSERT_EQ(open.refcount(cluster), 1u);
  for (HostOffset block : allocator.refcount_blocks()) {
    EXPECT_EQ(open.refcount(block.bytes / 512), 1u);
    EXPECT_EQ(owned.count(block.bytes / 512), 0u);
  }
  EXPECT_EQ(open.file->lock_violation_count(), 0u);
  // Leaks, as no table names them, and nothing worse.
  ASSERT_TRUE(open.image->rounds().settle().ok());
  EXPECT_TRUE(check_image_bytes(open.memory->content(), Leaks::kAllowed).ok());
}

}  // namespace
}  // namespace spindle::qcow2

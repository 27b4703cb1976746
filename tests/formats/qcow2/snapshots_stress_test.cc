// Snapshots come and go beside requests: every thread finds its own data, and
// each snapshot holds a state that the disk went through.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "engine/snapshot.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::read_bytes;
using testing::write_fill;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kClustersPerThread = 16;
constexpr uint64_t kRegion = kClustersPerThread * kCluster;
constexpr int kThreads = 4;

// Writes, discards and reads in a region of its own.  Every cluster holds one
// value, which only ever grows, so that a snapshot of it can be judged.
class Writer {
 public:
  Writer(BlockDriver* driver, uint64_t region, uint64_t seed)
      : driver_(*driver),
        begin_(region * kRegion),
        random_(seed),
        values_(kClustersPerThread, 0) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const uint64_t cluster = random_() % kClustersPerThread;
      const ByteRange range{begin_ + cluster * kCluster, kCluster};
      if (random_() % 3 == 0) {
        const auto bytes = read_bytes(driver_, range);
        ASSERT_TRUE(bytes.ok()) << bytes.status();
        ASSERT_EQ(*bytes, std::string(kCluster, value_of(cluster))) << cluster;
        continue;
      }
      values_[cluster] = static_cast<uint8_t>(values_[cluster] % 250 + 1);
      const absl::Status written = write_fill(driver_, range, values_[cluster]);
      ASSERT_TRUE(written.ok()) << written;
      if (random_() % 16 == 0) {
        ASSERT_TRUE(driver_.flush().ok());
      }
    }
  }
  std::string content() const {
    std::string all;
    for (uint64_t i = 0; i < kClustersPerThread; ++i)
      all.append(kCluster, value_of(i));
    return all;
  }

 private:
  char value_of(uint64_t cluster) const {
    return static_cast<char>(values_[cluster]);
  }

  BlockDriver& driver_;
  const uint64_t begin_;
  std::mt19937_64 random_;
  std::vector<uint8_t> values_;
};

TEST(SnapshotStress, ComeAndGoBesideRequests) {
  const uint64_t seed = testing::test_seed();
  MemoryImageOptions options;
  options.size_bytes = kThreads * kRegion;
  options.create["cluster_size"] = absl::StrCat(kCluster);
  MemoryImage image(options);

  std::vector<Writer> writers;
  for (int i = 0; i < kThreads; ++i)
    writers.emplace_back(&image.driver(), static_cast<uint64_t>(i),
                         seed + static_cast<uint64_t>(i));
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (Writer& writer : writers) {
    threads.emplace_back([&] {
      writer.run(4000);
      --running;
    });
  }
  std::mt19937_64 random(seed);
  std::vector<std::string> names;
  int made = 0;
  while (running > 0) {
    if (names.size() < 4 && random() % 3 != 0) {
      SnapshotInfo wanted;
      wanted.name = absl::StrCat("s", ++made);
      const auto created = image.driver().create_snapshot(wanted);
      ASSERT_TRUE(created.ok()) << created.status();
      names.push_back(wanted.name);
    } else if (!names.empty()) {
      const size_t which = random() % names.size();
      const absl::Status deleted = image.driver().delete_snapshot(names[which]);
      ASSERT_TRUE(deleted.ok()) << deleted;
      names.erase(names.begin() + static_cast<std::ptrdiff_t>(which));
    }
    const auto listed = image.driver().list_snapshots();
    ASSERT_TRUE(listed.ok());
    ASSERT_EQ(listed->size(), names.size());
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(made, 10);

  std::string expected;
  for (const Writer& writer : writers) expected += writer.content();
  const auto content =
      read_bytes(image.driver(), {0, uint64_t{kThreads} * kRegion});
  ASSERT_TRUE(content.ok());
  EXPECT_TRUE(*content == expected);
  const absl::Status clean = image.close_and_check();
  EXPECT_TRUE(clean.ok()) << clean;
}

}  // namespace
}  // namespace spindle::qcow2

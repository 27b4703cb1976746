// Errors at every access of a qcow2 to its file (error_injection.h).
#include "tests/formats/cluster/error_injection.h"

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(uint64_t cluster_bytes, uint64_t size_bytes) {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create["cluster_size"] = absl::StrCat(cluster_bytes);
  // Never crowded: a round that nobody asked for would report to nobody.
  options.open["l2-cache-size"] = "4M";
  options.open["refcount-cache-size"] = "4M";
  return options;
}

MemoryImageOptions with_backing() {
  MemoryImageOptions options = options_of(kCluster, 32 * kCluster);
  options.backing = std::string(options.size_bytes, 'b');
  return options;
}

// Refcounts of 64 bits in clusters of 512 bytes: a block counts 32 KiB of the
// file, and a table of one cluster 2 MiB.
MemoryImageOptions tiny_clusters(uint64_t size_bytes) {
  MemoryImageOptions options = options_of(512, size_bytes);
  options.create["refcount_bits"] = "64";
  return options;
}

std::vector<FailureScenario> scenarios() {
  const MemoryImageOptions plain = options_of(kCluster, 32 * kCluster);
  std::vector<FailureScenario> list;
  list.push_back({"FirstWrite",
                  plain,
                  {},
                  {write(0, kCluster, 1), write(5 * kCluster + 512, 1024, 2),
                   flush(), write(5 * kCluster + 2048, 512, 3),
                   write(9 * kCluster + 512, 3 * kCluster, 4), flush()}});
  list.push_back(
      {"FirstWriteOverBacking",
       with_backing(),
       {},
       {write(512, 512, 1), write(5 * kCluster - 512, 2 * kCluster, 2), flush(),
        write(1024, 512, 3), discard(5 * kCluster, kCluster),
        write(5 * kCluster + 512, 512, 4), flush()}});
  list.push_back(
      {"Overwrite",
       plain,
       {write(0, 8 * kCluster, 1)},
       {write(512, 3 * kCluster, 2), flush(),
        write(6 * kCluster, 4 * kCluster, 3), write(0, 512, 4), flush()}});
  list.push_back(
      {"DiscardAndRewrite",
       plain,
       {write(0, 8 * kCluster, 1)},
       {discard(kCluster, 3 * kCluster), write(10 * kCluster, kCluster, 2),
        flush(), write(2 * kCluster + 512, 512, 3),
        write(11 * kCluster, kCluster, 4), discard(0, kCluster), flush(),
        write(0, 4 * kCluster, 5), flush()}});
  list.push_back(
      {"WriteZeroes",
       plain,
       {write(0, 8 * kCluster, 1)},
       {zero(0, 2 * kCluster), zero_and_unmap(3 * kCluster, 2 * kCluster),
        write(512, 512, 2), flush(), zero(12 * kCluster, kCluster),
        write(12 * kCluster, 512, 3), write(3 * kCluster, 1024, 4), flush()}});
  MemoryImageOptions encrypted = plain;
  encrypted.encryption = "luks";
  list.push_back(
      {"Encrypted",
       encrypted,
       {write(0, 3 * kCluster, 1)},
       {write(5 * kCluster + 512, 1024, 2), flush(),
        write(5 * kCluster + 2048, 512, 3), discard(0, kCluster),
        write(512, 3 * kCluster, 4), zero(9 * kCluster, kCluster), flush(),
        write(9 * kCluster + 512, 512, 5), write(0, 1024, 6), flush()}});
  MemoryImageOptions old_encrypted = with_backing();
  old_encrypted.encryption = "aes";
  list.push_back(
      {"EncryptedOverBacking",
       old_encrypted,
       {},
       {write(512, 512, 1), write(5 * kCluster - 512, 2 * kCluster, 2), flush(),
        write(1024, 512, 3), discard(5 * kCluster, kCluster),
        write(5 * kCluster + 512, 512, 4), flush()}});
  MemoryImageOptions kept = plain;
  kept.open["discard-no-unref"] = "on";
  list.push_back(
      {"DiscardNoUnref",
       kept,
       {write(0, 8 * kCluster, 1), compressed(8 * kCluster, kCluster, 2)},
       {discard(kCluster, 3 * kCluster), zero_and_unmap(6 * kCluster, kCluster),
        discard(8 * kCluster, kCluster), write(2 * kCluster + 512, 512, 3),
        flush(), write(kCluster, kCluster, 4), write(6 * kCluster, 512, 5),
        discard(0, 2 * kCluster), flush(), write(512, 512, 6), flush()},
       {Purpose::kClusterAlloc, Purpose::kL2Update, Purpose::kClusterFree,
        Purpose::kFlushToDisk}});
  list.push_back(
      {"Compressed",
       plain,
       {compressed(0, 4 * kCluster, 1), write(4 * kCluster, 512, 2)},
       {compressed(6 * kCluster, 2 * kCluster, 3), flush(),
        compressed(0, kCluster, 4), discard(kCluster, kCluster),
        compressed(4 * kCluster, kCluster, 5), flush(),
        write(2 * kCluster + 512, 512, 6), zero(6 * kCluster, kCluster),
        compressed(8 * kCluster, kCluster, 7), flush()},
       {Purpose::kWriteCompressed, Purpose::kL2Update, Purpose::kRefblockUpdate,
        Purpose::kFlushToDisk}});
  // Subclusters are sectors here.
  constexpr uint64_t kLarge = 16384;
  MemoryImageOptions subclusters = options_of(kLarge, 8 * kLarge);
  subclusters.create["extended_l2"] = "on";
  const std::vector<Step> mixed = {write(512, 1024, 1),
                                   write(kLarge + 4096, kLarge, 2),
                                   flush(),
                                   write(4096, 512, 3),
                                   write(0, 8192, 4),
                                   zero(1024, 2048),
                                   zero_and_unmap(3 * kLarge, kLarge),
                                   flush(),
                                   write(1024, 512, 5),
                                   discard(kLarge, kLarge),
                                   write(kLarge + 512, 512, 6),
                                   compressed(4 * kLarge, kLarge, 7),
                                   flush(),
                                   write(4 * kLarge + 1024, 512, 8),
                                   write(3 * kLarge, 512, 9),
                                   flush()};
  list.push_back({"Subclusters", subclusters, {}, mixed});
  subclusters.backing = std::string(subclusters.size_bytes, 'b');
  list.push_back({"SubclustersOverBacking",
                  subclusters,
                  {write(3 * kLarge + 512, 2048, 1)},
                  mixed});
  list.back().allocations_run_rounds = true;
  // Refcount blocks are added beneath it.
  FailureScenario packed{"CompressedGrowth", tiny_clusters(256 << 10), {}, {}};
  packed.purposes = {Purpose::kWriteCompressed, Purpose::kRefblockAllocHookup};
  for (uint64_t i = 0; i < 4; ++i) {
    packed.steps.push_back(write(i * (40 << 10), 16 << 10, 1 + i));
    packed.steps.push_back(
        compressed(i * (40 << 10) + (16 << 10), 12 << 10, 10 + i));
    packed.steps.push_back(flush());
  }
  list.push_back(std::move(packed));
  FailureScenario growth{
      "GrowthOfTheRefcountTable", tiny_clusters(2100 << 10), {}, {}};
  growth.purposes = {Purpose::kReftableGrow, Purpose::kHeaderUpdate};
  // 2 MiB of the file, less what the tables take, and a bit.
  growth.setup.push_back(write(0, 1900 << 10, 1));
  for (uint64_t i = 0; i < 4; ++i) {
    const uint64_t offset = (1900 << 10) + i * (24 << 10);
    growth.steps.push_back(write(offset, 24 << 10, 2 + i));
    if (i % 2 == 1) growth.steps.push_back(flush());
  }
  growth.steps.push_back(discard(0, 64 << 10));
  growth.steps.push_back(flush());
  growth.steps.push_back(write(1024, 20 << 10, 9));
  growth.steps.push_back(flush());
  list.push_back(std::move(growth));
  FailureScenario blocks{
      "GrowthOfRefcountBlocks", tiny_clusters(256 << 10), {}, {}};
  blocks.purposes = {Purpose::kRefblockAllocHookup, Purpose::kL1Update};
  for (uint64_t i = 0; i < 6; ++i) {
    blocks.steps.push_back(write(i * (40 << 10), 17 << 10, 1 + i));
    blocks.steps.push_back(flush());
  }
  list.push_back(std::move(blocks));
  return list;
}

class ErrorInjection : public ::testing::TestWithParam<FailureScenario> {};
INSTANTIATE_TEST_SUITE_P(Scenarios, ErrorInjection,
                         ::testing::ValuesIn(scenarios()),
                         [](const auto& info) { return info.param.name; });

TEST_P(ErrorInjection, EveryAccessMayFail) { fail_every_access(GetParam()); }

// An image that cannot be read is not opened, and left as it is.
TEST(ErrorInjectionAtOpen, OpenReportsItAndWritesNothing) {
  MemoryImage image(tiny_clusters(64 << 10));
  ASSERT_EQ(image.write({0, 40 << 10}, 1), absl::OkStatus());
  ASSERT_EQ(image.close(), absl::OkStatus());
  const std::string before = image.memory().content();
  bool failed = true;
  int k = 0;
  while (failed) {
    auto copy = std::make_shared<MemoryDriver>();
    copy->set_content(0, before);
    auto observed = std::make_shared<ObservingDriver>(copy);
    observed->fail_at({}, EIO, ++k);
    const auto driver = qcow2::open_qcow2(observed, {}, {});
    failed = observed->failure_count() != 0;
    EXPECT_EQ(driver.ok(), !failed);
    EXPECT_EQ(errno_of(driver.status()).value_or(0), failed ? EIO : 0);
    EXPECT_TRUE(copy->content() == before);
  }
  EXPECT_GT(k, 3);
}

}  // namespace
}  // namespace spindle::testing

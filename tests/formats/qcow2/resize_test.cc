#include "formats/qcow2/resize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/failing_accesses.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::FailAt;
using testing::for_each_failing_access;
using testing::get_big64;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::read_bytes;
using testing::reads_as;

constexpr uint64_t kKib = 1024;
constexpr uint64_t kCluster = 4096;
constexpr uint64_t kLargeCluster = 16 * kKib;  // may have subclusters

MemoryImageOptions options_of(uint64_t size_bytes, uint64_t cluster_bytes,
                              std::string backing = "") {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create["cluster_size"] = absl::StrCat(cluster_bytes);
  options.backing = std::move(backing);
  return options;
}

absl::Status set_length(BlockDriver& driver, uint64_t length) {
  return driver.set_length(length, SetLengthMode::kExact);
}

std::string disk_of(BlockDriver& driver) {
  if (driver.length_bytes() == 0) return "";
  const auto content = read_bytes(driver, {0, driver.length_bytes()});
  return content.ok() ? *content : content.status().ToString();
}

// Where the file has the first L2 table.
uint64_t l2_table_of(const std::string& file) {
  return get_big64(file, get_big64(file, kL1TableOffsetOffset)) & kL1OffsetMask;
}

// ---- What a disk has that becomes longer ------------------------------------

TEST(Resize, WhatAShrinkCutOffDoesNotComeBack) {
  MemoryImage image(options_of(8 * kCluster, kCluster));
  ASSERT_TRUE(image.write({0, 8 * kCluster}, 7).ok());
  ASSERT_TRUE(set_length(image.driver(), 2 * kCluster + 512).ok());
  ASSERT_TRUE(set_length(image.driver(), 8 * kCluster).ok());
  EXPECT_TRUE(image.reads_as({0, 2 * kCluster + 512}, 7));
  EXPECT_TRUE(image.reads_as({2 * kCluster + 512, 6 * kCluster - 512}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

// The last cluster is a snapshot's as well, which must keep what it has there.
TEST(Resize, TheTailOfASharedClusterIsZeroedElsewhere) {
  MemoryImage image(options_of(4 * kCluster, kCluster));
  ASSERT_TRUE(image.write({0, 4 * kCluster}, 7).ok());
  SnapshotInfo whole;
  whole.name = "whole";
  ASSERT_TRUE(image.driver().create_snapshot(whole).ok());
  ASSERT_TRUE(set_length(image.driver(), kCluster + 512).ok());
  ASSERT_TRUE(set_length(image.driver(), 4 * kCluster).ok());
  EXPECT_TRUE(image.reads_as({kCluster + 512, 3 * kCluster - 512}, 0));
  ASSERT_TRUE(image.driver().apply_snapshot("whole").ok());
  EXPECT_TRUE(image.reads_as({0, 4 * kCluster}, 7));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(Resize, ALongerBackingFileDoesNotShowThrough) {
  for (const Preallocation preallocation :
       {Preallocation::kOff, Preallocation::kMetadata, Preallocation::kFalloc,
        Preallocation::kFull}) {
    SCOPED_TRACE(static_cast<int>(preallocation));
    MemoryImage image(options_of(2 * kCluster + 512, kCluster,
                                 std::string(8 * kCluster, 'b')));
    ASSERT_TRUE(image.driver().resize(10 * kCluster, preallocation).ok());
    EXPECT_TRUE(image.reads_as({0, 2 * kCluster + 512}, 'b'));
    EXPECT_TRUE(image.reads_as({2 * kCluster + 512, 8 * kCluster - 512}, 0));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

// Tables may name clusters behind the end: vmstate, or what a crash left there.
TEST(Resize, WhatTablesNameBehindTheEndDoesNotComeBack) {
  for (const uint64_t behind : {1 * kCluster, 600 * kCluster}) {
    SCOPED_TRACE(behind);
    const uint64_t size = 4 * kCluster;
    MemoryImage longer(options_of(size + behind + kCluster, kCluster));
    ASSERT_TRUE(longer.write({0, size}, 7).ok());
    ASSERT_TRUE(longer.write({size + behind, kCluster}, 9).ok());
    ASSERT_TRUE(longer.close().ok());
    MemoryImageOptions options;
    options.bytes = longer.memory().content();
    testing::set_big64(&options.bytes, kSizeOffset, size);
    MemoryImage image(options);
    ASSERT_TRUE(set_length(image.driver(), size + behind + kCluster).ok());
    EXPECT_TRUE(image.reads_as({0, size}, 7));
    EXPECT_TRUE(image.reads_as({size, behind + kCluster}, 0));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

// An extended entry may name a cluster of which no subcluster is allocated.
TEST(Resize, ForgetsClustersBehindTheEndThatHoldNothing) {
  MemoryImageOptions options = options_of(4 * kLargeCluster, kLargeCluster);
  options.create["extended_l2"] = "on";
  MemoryImage longer(options);
  ASSERT_TRUE(
      longer.driver().resize(8 * kLargeCluster, Preallocation::kMetadata).ok());
  ASSERT_TRUE(longer.close().ok());
  options.bytes = longer.memory().content();
  const uint64_t entry = l2_table_of(options.bytes) + 7 * kExtendedL2EntryBytes;
  EXPECT_NE(get_big64(options.bytes, entry), 0U);
  EXPECT_EQ(get_big64(options.bytes, entry + 8), 0U);
  testing::set_big64(&options.bytes, kSizeOffset, 4 * kLargeCluster);
  MemoryImage image(options);
  ASSERT_TRUE(set_length(image.driver(), 8 * kLargeCluster).ok());
  ASSERT_TRUE(image.flush().ok());
  const std::string after = image.memory().content();
  EXPECT_EQ(l2_table_of(after), l2_table_of(options.bytes));
  EXPECT_EQ(get_big64(after, entry), 0U);
  EXPECT_TRUE(image.close_and_check().ok());
}

// Clusters that were freed before hold old data.
TEST(Resize, PreallocatedClustersHaveNothingOld) {
  for (const Preallocation preallocation :
       {Preallocation::kMetadata, Preallocation::kFalloc,
        Preallocation::kFull}) {
    SCOPED_TRACE(static_cast<int>(preallocation));
    MemoryImage image(options_of(8 * kCluster, kCluster));
    ASSERT_TRUE(image.write({0, 8 * kCluster}, 7).ok());
    ASSERT_TRUE(image.discard({0, 6 * kCluster}).ok());
    ASSERT_TRUE(image.flush().ok());
    ASSERT_TRUE(image.driver().resize(20 * kCluster, preallocation).ok());
    EXPECT_TRUE(image.reads_as({8 * kCluster, 12 * kCluster}, 0));
    for (uint64_t at = 8 * kCluster; at < 20 * kCluster; at += kCluster)
      EXPECT_TRUE(image.host_of(at).has_value()) << at;
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

// ---- What a resize leaves in the file ---------------------------------------

TEST(Resize, AShorterDiskGivesItsClustersBack) {
  MemoryImage image(options_of(256 * kKib, 512));
  ASSERT_TRUE(image.write({0, 256 * kKib}, 7).ok());
  ASSERT_TRUE(image.flush().ok());
  const uint64_t before = image.memory().length_bytes();
  ASSERT_TRUE(set_length(image.driver(), 32 * kKib).ok());
  EXPECT_LT(image.memory().length_bytes(), before / 4);
  EXPECT_TRUE(image.reads_as({0, 32 * kKib}, 7));
  ASSERT_TRUE(set_length(image.driver(), 0).ok());
  ASSERT_TRUE(set_length(image.driver(), 256 * kKib).ok());
  EXPECT_TRUE(image.reads_as({0, 256 * kKib}, 0));
  ASSERT_TRUE(image.write({0, 256 * kKib}, 8).ok());
  EXPECT_TRUE(image.reads_as({0, 256 * kKib}, 8));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(Resize, TheL1TableGrowsByOneSwitchOfTheHeader) {
  MemoryImage image(options_of(32 * kKib, 512));
  ASSERT_TRUE(image.flush().ok());
  const std::string before = image.memory().content();
  EXPECT_EQ(get_big64(before, kL1SizeOffset) >> 32, 1U);
  ASSERT_TRUE(set_length(image.driver(), 8192 * kKib).ok());
  const std::string after = image.memory().content();
  EXPECT_EQ(get_big64(after, kL1SizeOffset) >> 32, 256U);
  EXPECT_NE(get_big64(after, kL1TableOffsetOffset),
            get_big64(before, kL1TableOffsetOffset));
  EXPECT_EQ(get_big64(after, kSizeOffset), 8192 * kKib);
  // Shorter again, it keeps its entries, as QEMU does it.
  ASSERT_TRUE(set_length(image.driver(), 32 * kKib).ok());
  EXPECT_EQ(get_big64(image.memory().content(), kL1SizeOffset) >> 32, 256U);
  EXPECT_TRUE(image.close_and_check().ok());
}

// Where nothing lies behind the end, there is nothing to change there.
TEST(Resize, ALongerDiskLeavesTheTableThatASnapshotShares) {
  for (const char* extended : {"off", "on"}) {
    SCOPED_TRACE(extended);
    MemoryImageOptions options = options_of(4 * kLargeCluster, kLargeCluster);
    options.create["extended_l2"] = extended;
    MemoryImage image(options);
    ASSERT_TRUE(image.write({0, 4 * kLargeCluster}, 7).ok());
    ASSERT_TRUE(image.driver().create_snapshot({}).ok());
    const std::string before = image.memory().content();
    ASSERT_TRUE(set_length(image.driver(), 8 * kLargeCluster).ok());
    ASSERT_TRUE(image.flush().ok());
    EXPECT_EQ(l2_table_of(image.memory().content()), l2_table_of(before));
    EXPECT_TRUE(image.reads_as({4 * kLargeCluster, 4 * kLargeCluster}, 0));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

// ---- Refusals ---------------------------------------------------------------

TEST(Resize, RefusesWhatTheFormatCannotHave) {
  MemoryImage image(options_of(32 * kKib, 512));
  BlockDriver& driver = image.driver();
  EXPECT_TRUE(absl::IsInvalidArgument(set_length(driver, 1000)));
  // 4,194,304 entries of 32 KiB each.
  const uint64_t most = uint64_t{4194304} * 32 * kKib;
  const absl::Status too_long = set_length(driver, most + 512);
  EXPECT_TRUE(absl::IsResourceExhausted(too_long)) << too_long;
  EXPECT_TRUE(
      absl::IsResourceExhausted(set_length(driver, (uint64_t{1} << 63) - 512)));
  EXPECT_TRUE(absl::IsInvalidArgument(
      driver.resize(16 * kKib, Preallocation::kMetadata)));
  EXPECT_EQ(driver.length_bytes(), 32 * kKib);
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kSetLength));
  EXPECT_TRUE(absl::IsPermissionDenied(set_length(image.driver(), 64 * kKib)));
}

TEST(Resize, TakesTheLongestDiskThatTheL1TableAllows) {
  const uint64_t cluster = 64 * kKib;
  MemoryImage image(options_of(cluster, cluster));
  const uint64_t most = 4194304 * (8192 * cluster);
  EXPECT_TRUE(
      absl::IsResourceExhausted(set_length(image.driver(), most + 512)));
  ASSERT_TRUE(image.write({0, cluster}, 7).ok());
  ASSERT_TRUE(set_length(image.driver(), most).ok());
  ASSERT_TRUE(image.write({most - 512, 512}, 8).ok());
  EXPECT_TRUE(image.reads_as({most - 512, 512}, 8));
  ASSERT_TRUE(set_length(image.driver(), cluster).ok());
  EXPECT_TRUE(image.reads_as({0, cluster}, 7));
  EXPECT_TRUE(image.close_and_check().ok());
}

// Its L1 table is a run of clusters whose refcounts are in more slices than an
// image of this size has in its cache.
TEST(Resize, AnL1TableMayNeedManyRefcountSlices) {
  MemoryImage image(options_of(32 * kKib, 512));
  ASSERT_TRUE(set_length(image.driver(), uint64_t{40} << 30).ok());
  ASSERT_TRUE(set_length(image.driver(), 32 * kKib).ok());
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(Resize, Version2DoesNotSayHowLongTheDisksOfSnapshotsAre) {
  MemoryImageOptions options = options_of(8 * kCluster, kCluster);
  options.create["compat"] = "0.10";
  MemoryImage image(options);
  ASSERT_TRUE(image.driver().create_snapshot({}).ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition(set_length(image.driver(), 16 * kCluster)));
  ASSERT_TRUE(image.driver().delete_snapshot("1").ok());
  EXPECT_TRUE(set_length(image.driver(), 16 * kCluster).ok());
}

TEST(Resize, Version2CannotHideALongerBackingFile) {
  MemoryImageOptions options =
      options_of(2 * kCluster, kCluster, std::string(8 * kCluster, 'b'));
  options.create["compat"] = "0.10";
  MemoryImage image(options);
  EXPECT_TRUE(absl::IsUnimplemented(set_length(image.driver(), 4 * kCluster)));
  EXPECT_EQ(image.driver().length_bytes(), 2 * kCluster);
  // What it can write, it can hide.
  ASSERT_TRUE(image.driver().resize(4 * kCluster, Preallocation::kFull).ok());
  EXPECT_TRUE(image.reads_as({2 * kCluster, 2 * kCluster}, 0));
}

// The generic layer checked the range before; then the disk became shorter.
TEST(Resize, ARequestThatIsCutOffIsOutOfRange) {
  MemoryImage image(options_of(8 * kCluster, kCluster));
  ASSERT_TRUE(set_length(image.driver(), 4 * kCluster).ok());
  BlockDriver& driver = image.driver();
  const ByteRange beyond{3 * kCluster, 2 * kCluster};
  EXPECT_TRUE(absl::IsOutOfRange(read_bytes(driver, beyond).status()));
  EXPECT_TRUE(absl::IsOutOfRange(image.write(beyond, 1)));
  EXPECT_TRUE(absl::IsOutOfRange(driver.discard(beyond)));
  EXPECT_TRUE(absl::IsOutOfRange(driver.write_zeroes(beyond, {})));
  EXPECT_TRUE(absl::IsOutOfRange(
      driver.block_status(beyond, BlockStatusScope::kThisLayer).status()));
}

// ---- Errors and power cuts --------------------------------------------------

struct Scenario {
  const char* name;
  MemoryImageOptions options;
  std::function<void(MemoryImage&)> setup;
  uint64_t new_size = 0;
  Preallocation preallocation = Preallocation::kOff;
};

std::vector<Scenario> scenarios() {
  std::vector<Scenario> list;
  const auto fill = [](MemoryImage& image) {
    const uint64_t length = image.driver().length_bytes();
    EXPECT_TRUE(image.write({0, length}, 7).ok());
    EXPECT_TRUE(image.discard({kCluster, 2 * kCluster}).ok());
  };
  const auto fill_and_crop = [fill](MemoryImage& image) {
    fill(image);
    EXPECT_TRUE(set_length(image.driver(), 20 * kKib + 512).ok());
  };
  const auto fill_with_snapshot = [fill](MemoryImage& image) {
    fill(image);
    EXPECT_TRUE(image.driver().create_snapshot({}).ok());
    EXPECT_TRUE(image.write({16 * kKib, 32 * kKib}, 8).ok());
  };
  list.push_back({"GrowL1", options_of(64 * kKib, 512), fill, 4096 * kKib});
  list.push_back({"GrowOverATail", options_of(64 * kKib, kCluster),
                  fill_and_crop, 64 * kKib});
  list.push_back(
      {"GrowWithBacking",
       options_of(20 * kKib + 512, 512, std::string(64 * kKib, 'b')),
       [](MemoryImage& image) { EXPECT_TRUE(image.write({0, 1024}, 7).ok()); },
       80 * kKib});
  list.push_back({"GrowMetadata", options_of(64 * kKib, 512), fill, 256 * kKib,
                  Preallocation::kMetadata});
  list.push_back({"GrowFull", options_of(64 * kKib, kCluster), fill, 256 * kKib,
                  Preallocation::kFull});
  list.push_back({"GrowWithSnapshot", options_of(64 * kKib, 512),
                  fill_with_snapshot, 1024 * kKib});
  list.push_back({"Shrink", options_of(256 * kKib, 512), fill, 48 * kKib});
  list.push_back(
      {"ShrinkRagged", options_of(64 * kKib, kCluster), fill, 10 * kKib + 512});
  list.push_back({"ShrinkToNothing", options_of(64 * kKib, 512), fill, 0});
  list.push_back({"ShrinkWithSnapshot", options_of(128 * kKib, 512),
                  fill_with_snapshot, 24 * kKib});
  return list;
}

class ResizeScenarios : public ::testing::TestWithParam<Scenario> {
 protected:
  void SetUp() override {
    const Scenario& scenario = GetParam();
    {
      MemoryImage image(scenario.options);
      scenario.setup(image);
      before_ = disk_of(image.driver());
      ASSERT_TRUE(image.close().ok());
      options_.bytes = image.memory().content();
    }
    options_.backing = scenario.options.backing;
    after_ = before_;
    after_.resize(scenario.new_size);
    MemoryImage image(options_);
    const absl::Status status = resize(image.driver());
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(disk_of(image.driver()) == after_);
    const absl::Status clean = image.close_and_check();
    ASSERT_TRUE(clean.ok()) << clean;
  }

  absl::Status resize(BlockDriver& driver) const {
    return driver.resize(GetParam().new_size, GetParam().preallocation);
  }
  // Whatever the file became: nothing worse than leaks, and the disk is as
  // before or as after.
  void judge(MemoryImage& image, const std::string& bytes,
             std::optional<bool> done) const {
    const absl::Status sound =
        testing::check_image_bytes(bytes, testing::Leaks::kAllowed);
    EXPECT_TRUE(sound.ok()) << sound;
    const auto copy = image.open_copy(bytes);
    ASSERT_TRUE(copy.ok()) << copy.status();
    const std::string disk = disk_of(**copy);
    EXPECT_TRUE((disk == before_ && !done.value_or(false)) ||
                (disk == after_ && done.value_or(true)))
        << "length " << disk.size() << ", done " << done.value_or(2);
  }

  MemoryImageOptions options_;
  std::string before_;
  std::string after_;
};

TEST_P(ResizeScenarios, AnErrorLeavesTheDiskAsItWas) {
  const int failed_accesses = for_each_failing_access([&](const FailAt& fail) {
    MemoryImage image(options_);
    fail.arm(&image.file());
    const absl::Status status = resize(image.driver());
    if (image.file().failure_count() == 0) return false;
    image.file().clear_failures();
    EXPECT_TRUE(disk_of(image.driver()) == (status.ok() ? after_ : before_))
        << status;
    // The driver may not know what the header says: then it is marked.
    const bool unsure = !status.ok() && image.driver().info().corrupt;
    image.close().IgnoreError();
    judge(image, image.memory().content(),
          unsure ? std::nullopt : std::make_optional(status.ok()));
    return true;
  });
  EXPECT_GT(failed_accesses, 5);
}

TEST_P(ResizeScenarios, APowerCutLeavesTheOldDiskOrTheNewOne) {
  const uint64_t seed = testing::test_seed();
  std::mt19937_64 random(seed);
  const auto file = std::make_shared<testing::LoggingDriver>(
      options_.bytes, [](int) { return true; });
  MemoryImage context(options_);
  auto driver = open_qcow2(file, {}, context.context());
  ASSERT_TRUE(driver.ok()) << driver.status();
  ASSERT_TRUE(resize(**driver).ok());
  const size_t done = file->mark();
  ASSERT_TRUE((*driver)->close().ok());
  const size_t entries = file->entries().size();
  testing::CutDisk disk(options_.bytes, file->entries());
  for (size_t moment = 0; moment <= entries; ++moment) {
    SCOPED_TRACE(absl::StrCat("cut at entry ", moment, " of ", entries));
    for (int i = 0; i < 2 && !HasFailure(); ++i) {
      judge(context, disk.cut(moment, &random),
            moment >= done ? std::make_optional(true) : std::nullopt);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scenarios, ResizeScenarios,
                         ::testing::ValuesIn(scenarios()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace spindle::qcow2

// Changing the backing file of an open image, and making it empty.
#include <cstdint>
#include <memory>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/format.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::check_image_bytes;
using testing::CutDisk;
using testing::Leaks;
using testing::LoggingDriver;
using testing::MemoryImage;
using testing::MemoryImageOptions;

constexpr uint64_t kCluster = 65536;
constexpr uint64_t kDiskBytes = 40 * kCluster;
constexpr uint8_t kBackingFill = 'b';

MemoryImageOptions overlay(const OptionMap& create = {}) {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create = create;
  options.backing = std::string(kDiskBytes, kBackingFill);
  return options;
}

void fill(MemoryImage& image) {
  ASSERT_TRUE(image.write({0, 10 * kCluster}, 1).ok());
  ASSERT_TRUE(image.write({20 * kCluster + 512, kCluster}, 2).ok());
  ASSERT_TRUE(image.write({30 * kCluster, 3 * kCluster}, 0).ok());
}

TEST(MakeEmpty, ShowsTheBackingFileAndIsAsLongAsWhenItWasNew) {
  MemoryImage image(overlay());
  const uint64_t new_length = align_up(image.memory().length_bytes(), kCluster);
  fill(image);
  ASSERT_TRUE(image.driver().make_empty().ok());
  EXPECT_TRUE(image.reads_as({0, kDiskBytes}, kBackingFill));
  EXPECT_EQ(image.memory().length_bytes(), new_length);
  // It goes on.
  ASSERT_TRUE(image.write({5 * kCluster, 700}, 3).ok());
  ASSERT_TRUE(image.close_and_check().ok());
}

TEST(MakeEmpty, KeepsSnapshots) {
  for (const char* compat : {"0.10", "1.1"}) {
    MemoryImage image(overlay({{"compat", compat}}));
    fill(image);
    SnapshotInfo wanted;
    wanted.name = "one";
    ASSERT_TRUE(image.driver().create_snapshot(wanted).ok());
    ASSERT_TRUE(image.write({0, kCluster}, 7).ok());
    ASSERT_TRUE(image.driver().make_empty().ok());
    EXPECT_TRUE(image.reads_as({0, kDiskBytes}, kBackingFill));
    ASSERT_TRUE(image.driver().apply_snapshot("one").ok());
    EXPECT_TRUE(image.reads_as({0, 10 * kCluster}, 1));
    ASSERT_TRUE(image.close_and_check().ok());
  }
}

TEST(MakeEmpty, OfAReadOnlyImageIsRefused) {
  MemoryImage image(overlay());
  fill(image);
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_TRUE(absl::IsPermissionDenied(image.driver().make_empty()));
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kMakeEmpty));
  EXPECT_TRUE(image.reads_as({0, 10 * kCluster}, 1));
}

TEST(MakeEmpty, APowerCutLeavesEachClusterAsItWasOrTheBackingFiles) {
  for (const char* compat : {"0.10", "1.1"}) {
    MemoryImage image(overlay({{"compat", compat}}));
    fill(image);
    ASSERT_TRUE(image.close().ok());
    const std::string start = image.memory().content();
    auto logging =
        std::make_shared<LoggingDriver>(start, [](int) { return true; });
    {
      const auto driver = open_qcow2(logging, OpenOptions(), image.context());
      ASSERT_TRUE(driver.ok()) << driver.status();
      ASSERT_TRUE((*driver)->make_empty().ok());
      ASSERT_TRUE((*driver)->close().ok());
    }
    std::mt19937_64 random(testing::test_seed());
    CutDisk disk(start, logging->entries());
    const size_t moments = logging->entries().size();
    EXPECT_GT(moments, 1u);
    for (size_t moment = 0; moment <= moments; ++moment) {
      SCOPED_TRACE(absl::StrCat("cut after ", moment, " of ", moments));
      const std::string bytes = disk.cut(moment, &random);
      const absl::Status checked = check_image_bytes(bytes, Leaks::kAllowed);
      ASSERT_TRUE(checked.ok()) << checked;
      const auto copy = image.open_copy(bytes);
      ASSERT_TRUE(copy.ok()) << copy.status();
      const auto first = testing::read_bytes(**copy, {0, 1});
      ASSERT_TRUE(first.ok());
      EXPECT_TRUE((*first)[0] == 1 || (*first)[0] == kBackingFill);
      EXPECT_TRUE(testing::reads_as(**copy, {0, kCluster},
                                    static_cast<uint8_t>((*first)[0])));
    }
  }
}

TEST(ChangeBackingFile, IsInTheHeaderAtOnceAndOpensNothing) {
  MemoryImage image(overlay());
  fill(image);
  ASSERT_TRUE(image.driver().change_backing_file("gone.q", "qcow2").ok());
  EXPECT_EQ(image.driver().info().backing_filename, "gone.q");
  EXPECT_EQ(image.driver().info().backing_format, "qcow2");
  // It reads through the one that it was opened over.
  EXPECT_TRUE(image.reads_as({15 * kCluster, kCluster}, kBackingFill));
  const std::string bytes = image.memory().content();
  ASSERT_TRUE(image.write({15 * kCluster, kCluster}, 5).ok());
  ASSERT_TRUE(image.driver().change_backing_file("", "").ok());
  EXPECT_EQ(image.driver().info().backing_filename, "");
  EXPECT_TRUE(image.reads_as({15 * kCluster, kCluster}, 5));
  ASSERT_TRUE(image.close().ok());
  const auto memory = std::make_shared<testing::MemoryDriver>();
  memory->set_content(0, bytes);
  OpenOptions options;
  options.open_backing = false;
  const auto driver = open_qcow2(memory, options, OpenContext());
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->info().backing_filename, "gone.q");
}

TEST(ChangeBackingFile, ThatDoesNotFitChangesNothing) {
  MemoryImage image(overlay({{"cluster_size", "512"}}));
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  const std::string before = image.driver().info().backing_filename;
  EXPECT_TRUE(absl::IsResourceExhausted(
      image.driver().change_backing_file(std::string(500, 'x'), "raw")));
  EXPECT_TRUE(absl::IsInvalidArgument(
      image.driver().change_backing_file(std::string(1024, 'x'), "raw")));
  EXPECT_EQ(image.driver().info().backing_filename, before);
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, kBackingFill));
}

}  // namespace
}  // namespace spindle::qcow2

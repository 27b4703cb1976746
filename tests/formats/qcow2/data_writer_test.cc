#include "formats/qcow2/data_writer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <future>
#include <string>

#include "absl/status/status.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::qemu_image_bytes;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;

TEST(DataWriter, OverwritesGoToTheirClusterAndNothingElse) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 1 0 128k"});
  MemoryImage image(options);
  image.file().reset_counts();
  ASSERT_TRUE(image.write({512, kCluster}, 2).ok());
  EXPECT_EQ(image.file().count(AccessKind::kWrite), 1u);
  EXPECT_EQ(image.file().count(Purpose::kWriteAio), 1u);
  EXPECT_EQ(image.file().count(Purpose::kFlushToDisk), 0u);
  EXPECT_TRUE(image.reads_as({0, 512}, 1));
  EXPECT_TRUE(image.reads_as({512, kCluster}, 2));
}

TEST(DataWriter, AFreshClusterNeedsNoPadding) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "");
  MemoryImage image(options);
  ASSERT_TRUE(image.write({4096, 512}, 2).ok());
  EXPECT_EQ(image.file().count(Purpose::kCowRead), 0u);
  EXPECT_EQ(image.file().count(Purpose::kClusterAlloc), 1u);
  EXPECT_TRUE(image.reads_as({0, 4096}, 0));
  EXPECT_TRUE(image.reads_as({4608, kCluster - 4608}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(DataWriter, DataAndPaddingGoOutInOneWrite) {
  MemoryImageOptions options;
  options.size_bytes = 8 * kCluster;
  options.backing = std::string(8 * kCluster, 'b');
  MemoryImage image(options);
  // Over three clusters: padding at both ends.
  ASSERT_TRUE(image.write({kCluster / 2, 2 * kCluster}, 2).ok());
  EXPECT_EQ(image.backing().count(Purpose::kCowRead), 2u);
  EXPECT_EQ(image.file().count(Purpose::kClusterAlloc), 1u);
  EXPECT_TRUE(image.reads_as({0, kCluster / 2}, 'b'));
  EXPECT_TRUE(image.reads_as({kCluster / 2, 2 * kCluster}, 2));
  EXPECT_TRUE(
      image.reads_as({kCluster / 2 * 5, kCluster * 8 - kCluster / 2 * 5}, 'b'));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(DataWriter, AUsedClusterIsPaddedWithZeroes) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "", {"write -P 1 0 64k"});
  options.open = {{"reuse", "lowest"}};
  MemoryImage image(options);
  ASSERT_TRUE(image.discard({0, kCluster}).ok());
  ASSERT_TRUE(image.flush().ok());
  ASSERT_TRUE(image.write({kMib + 4096, 512}, 2).ok());
  EXPECT_TRUE(image.reads_as({kMib, 4096}, 0));
  EXPECT_TRUE(image.reads_as({kMib + 4608, kCluster - 4608}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(DataWriter, CopiesWhatItReplaces) {
  const struct {
    const char* command;
    uint8_t before;
  } cases[] = {{"write -c -P 5 0 64k", 5}, {"write -z 0 64k", 0}};
  for (const auto& c : cases) {
    MemoryImageOptions options;
    options.bytes = qemu_image_bytes(64 * kMib, "", {c.command});
    MemoryImage image(options);
    ASSERT_TRUE(image.write({1024, 512}, 2).ok());
    EXPECT_TRUE(image.reads_as({0, 1024}, c.before)) << c.command;
    EXPECT_TRUE(image.reads_as({1024, 512}, 2));
    EXPECT_TRUE(image.reads_as({1536, kCluster - 1536}, c.before));
    EXPECT_TRUE(image.close_and_check().ok()) << c.command;
  }
}

TEST(DataWriter, AFailureAtAnyStepLeavesTheOldContentAndNoLeak) {
  const struct {
    const char* name;
    Purpose purpose;
    bool of_backing;
  } steps[] = {{"reading what surrounds", Purpose::kCowRead, true},
               {"writing", Purpose::kClusterAlloc, false},
               {"loading refcounts", Purpose::kRefblockLoad, false},
               {"loading the table", Purpose::kL2Load, false}};
  for (const auto& step : steps) {
    SCOPED_TRACE(step.name);
    MemoryImageOptions options;
    options.size_bytes = 8 * kCluster;
    options.backing = std::string(8 * kCluster, 'b');
    MemoryImage image(options);
    (step.of_backing ? image.backing() : image.file())
        .fail_at({.purpose = step.purpose}, EIO);
    EXPECT_FALSE(image.write({512, kCluster}, 2).ok());
    EXPECT_TRUE(image.reads_as({0, 8 * kCluster}, 'b'));
    ASSERT_TRUE(image.flush().ok());
    ASSERT_TRUE(image.write({512, kCluster}, 2).ok());
    EXPECT_TRUE(image.reads_as({512, kCluster}, 2));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

TEST(DataWriter, OneFirstWriteDoesNotHoldUpAnother) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "");
  MemoryImage image(options);
  auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = std::async(std::launch::async,
                          [&] { return image.write({0, kCluster}, 1); });
  stop->wait_until_reached();
  // Another cluster; the same cluster, which it joins; reads.
  EXPECT_TRUE(image.write({kMib, 512}, 2).ok());
  EXPECT_TRUE(image.reads_as({kMib, 512}, 2));
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(DataWriter, SmallWritesIntoANewClusterJoin) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(64 * kMib, "");
  MemoryImage image(options);
  auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first =
      std::async(std::launch::async, [&] { return image.write({0, 4096}, 1); });
  stop->wait_until_reached();
  for (uint64_t i = 1; i < 16; ++i) {
    ASSERT_TRUE(
        image.write({i * 4096, 4096}, static_cast<uint8_t>(i + 1)).ok());
  }
  // One of them published for all: the cluster is there before its owner ends.
  EXPECT_TRUE(image.host_of(0).has_value());
  stop->resume();
  EXPECT_TRUE(first.get().ok());
  for (uint64_t i = 0; i < 16; ++i)
    EXPECT_TRUE(image.reads_as({i * 4096, 4096}, static_cast<uint8_t>(i + 1)));
  EXPECT_TRUE(image.close_and_check().ok());
}

}  // namespace
}  // namespace spindle::qcow2

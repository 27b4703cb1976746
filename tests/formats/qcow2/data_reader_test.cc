#include "formats/qcow2/data_reader.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "absl/status/status.h"
#include "formats/qcow2/layout.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"

namespace spindle::qcow2 {
namespace {

using testing::get_big64;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::OpenImage;
using testing::qemu_image_bytes;
using testing::set_big64;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;

TEST(DataReader, ReadsAcrossClustersOfEveryKind) {
  OpenImage open(
      qemu_image_bytes(64 * kMib, "",
                       {"write -P 1 0 64k", "write -z 64k 64k",
                        "write -c -P 3 192k 64k", "write -P 4 256k 64k"}));
  DataReader reader(open.image.get());
  std::string data(5 * kCluster, '\xee');
  ASSERT_TRUE(reader.read({0}, IoVector(data.data(), data.size())).ok());
  const char expected[] = {1, 0, 0, 3, 4};
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(data.substr(i * kCluster, kCluster),
              std::string(kCluster, expected[i]))
        << i;
  }
  // From the middle of one into the middle of the next, in several segments.
  std::string first(1000, '\xee');
  std::string second(1048, '\xee');
  const IoVector scattered{{first.data(), first.size()},
                           {second.data(), second.size()}};
  ASSERT_TRUE(reader.read({4 * kCluster - 1024}, scattered).ok());
  EXPECT_EQ(first + second, std::string(1024, 3) + std::string(1024, 4));
}

// COPIED alone names a cluster only in an external data file: elsewhere it
// would show the guest the header.
TEST(DataReader, AnEntryThatIsOnlyCopiedNamesNothing) {
  std::string bytes = qemu_image_bytes(64 * kMib, "", {"write -P 1 0 64k"});
  const uint64_t l2 =
      get_big64(bytes, get_big64(bytes, kL1TableOffsetOffset)) & kL1OffsetMask;
  ASSERT_EQ(get_big64(bytes, l2 + 8), 0u);
  set_big64(&bytes, l2 + 8, kEntryCopied);
  MemoryImageOptions options;
  options.bytes = bytes;
  MemoryImage image(options);
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 0));
  ASSERT_EQ(image.write({kCluster, kCluster}, 7), absl::OkStatus());
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 7));
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  EXPECT_EQ(image.memory().content({0, 4}), bytes.substr(0, 4));
}

TEST(DataReader, InflatesASequentiallyReadClusterOnce) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write -c -P 3 0 64k"}));
  DataReader reader(open.image.get());
  std::string data(4096, '\0');
  for (uint64_t at = 0; at < kCluster; at += data.size()) {
    ASSERT_TRUE(reader.read({at}, IoVector(data.data(), data.size())).ok());
    ASSERT_EQ(data, std::string(4096, 3));
  }
  EXPECT_EQ(open.file->count(Purpose::kReadCompressed), 1u);
}

TEST(DataReader, TryReadGivesThePrefixThatNeedsNoIo) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write -z 0 64k"}));
  DataReader reader(open.image.get());
  std::string data(2 * kCluster, '\xee');
  const IoVector qiov(data.data(), data.size());
  EXPECT_EQ(reader.try_read({0}, qiov), 0u);  // the table is not there
  ASSERT_TRUE(reader.read({0}, qiov).ok());
  data.assign(data.size(), '\xee');
  EXPECT_EQ(reader.try_read({0}, qiov), data.size());
  EXPECT_EQ(data, std::string(data.size(), '\0'));
}

TEST(DataReader, TheBackingFileShowsThroughToItsEnd) {
  MemoryImageOptions options;
  options.size_bytes = 4 * kCluster;
  options.backing = std::string(kCluster + 1000, 'b');
  MemoryImage image(options);
  EXPECT_TRUE(image.reads_as({0, kCluster + 512}, 'b'));
  const auto tail = testing::read_bytes(image.driver(), {kCluster + 512, 1024});
  ASSERT_TRUE(tail.ok());
  EXPECT_EQ(*tail, std::string(488, 'b') + std::string(536, '\0'));
  EXPECT_TRUE(image.reads_as({2 * kCluster, kCluster}, 0));
  image.backing().fail_at({.purpose = Purpose::kReadBackingAio}, EIO);
  EXPECT_FALSE(testing::read_bytes(image.driver(), {0, 512}).ok());
}

}  // namespace
}  // namespace spindle::qcow2

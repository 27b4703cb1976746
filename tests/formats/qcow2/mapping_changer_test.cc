#include "formats/qcow2/mapping_changer.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::qemu_image_bytes;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;

MemoryImageOptions image_of(const std::string& options,
                            const std::vector<std::string>& commands) {
  MemoryImageOptions image;
  image.bytes = qemu_image_bytes(64 * kMib, options, commands);
  return image;
}

// The same change by the other implementation gives the same entries.
std::string l2_table(const std::string& bytes) {
  const uint64_t l1 = testing::get_big64(bytes, 40);
  const uint64_t l2 = testing::get_big64(bytes, l1) & 0x00fffffffffffe00;
  return bytes.substr(l2, kCluster);
}

TEST(MappingChanger, DiscardsAndZeroesAsQemuDoes) {
  const std::vector<std::string> setup = {
      "write -P 1 0 512k", "write -z 128k 64k", "write -zu 192k 64k"};
  const struct {
    const char* command;
    bool is_discard;
    bool may_unmap;
    ByteRange range;
  } cases[] = {
      {"discard 0 512k", true, false, {0, 8 * kCluster}},
      {"discard 1k 200k", true, false, {1024, 200 * 1024}},
      {"discard 0 32k", true, false, {0, kCluster / 2}},
      {"discard 1M 1M", true, false, {kMib, kMib}},
      {"write -z 0 512k", false, false, {0, 8 * kCluster}},
      {"write -zu 0 512k", false, true, {0, 8 * kCluster}},
      {"write -z 1M 64k", false, false, {kMib, kCluster}},
      {"write -z 136k 8k", false, false, {136 * 1024, 8192}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.command);
    MemoryImage image(image_of("", setup));
    std::vector<std::string> all = setup;
    all.emplace_back(c.command);
    const std::string theirs = qemu_image_bytes(64 * kMib, "", all);
    const absl::Status status =
        c.is_discard
            ? image.discard(c.range)
            : image.driver().write_zeroes(c.range, {.may_unmap = c.may_unmap});
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(image.flush().ok());
    EXPECT_TRUE(l2_table(image.memory().content()) == l2_table(theirs));
    EXPECT_TRUE(image.close_and_check().ok());
  }
}

TEST(MappingChanger, PartOfAClusterThatHoldsDataCannotBecomeZero) {
  MemoryImage image(image_of("", {"write -P 1 0 128k"}));
  EXPECT_TRUE(
      absl::IsUnimplemented(image.driver().write_zeroes({4096, 4096}, {})));
  EXPECT_TRUE(image.reads_as({0, 2 * kCluster}, 1));
  EXPECT_TRUE(image.driver().write_zeroes({0, kCluster}, {}).ok());
  EXPECT_TRUE(image.driver().write_zeroes({4096, 4096}, {}).ok());
}

TEST(MappingChanger, AZeroClusterKeepsItsPlaceForTheNextWrite) {
  MemoryImage image(image_of("", {"write -P 1 0 64k"}));
  const std::optional<uint64_t> host = image.host_of(0);
  ASSERT_TRUE(image.driver().write_zeroes({0, kCluster}, {}).ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  ASSERT_TRUE(image.write({512, 512}, 3).ok());
  EXPECT_EQ(image.host_of(0), host);
  EXPECT_TRUE(image.reads_as({0, 512}, 0));
  EXPECT_TRUE(image.reads_as({512, 512}, 3));
  EXPECT_TRUE(image.reads_as({1024, kCluster - 1024}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(MappingChanger, VersionTwoForgetsWithoutABackingFile) {
  MemoryImage image(
      image_of("compat=0.10", {"write -P 1 0 64k", "write -P 2 64k 64k"}));
  ASSERT_TRUE(image.driver().write_zeroes({0, kCluster}, {}).ok());
  EXPECT_EQ(image.host_of(0), std::nullopt);
  // Part of a cluster that holds data must be written.
  EXPECT_TRUE(
      absl::IsUnimplemented(image.driver().write_zeroes({kCluster, 512}, {})));
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 2));
  ASSERT_TRUE(image.discard({kCluster, kCluster}).ok());
  EXPECT_TRUE(image.reads_as({0, 2 * kCluster}, 0));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(MappingChanger, VersionTwoCannotHideABackingFile) {
  MemoryImageOptions options;
  options.size_bytes = 8 * kCluster;
  options.create = {{"compat", "0.10"}};
  options.backing = std::string(8 * kCluster, 'b');
  MemoryImage image(options);
  EXPECT_TRUE(
      absl::IsUnimplemented(image.driver().write_zeroes({0, kCluster}, {})));
  ASSERT_TRUE(image.discard({0, kCluster}).ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 'b'));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(MappingChanger, ADiscardHidesTheBackingFile) {
  MemoryImageOptions options;
  options.size_bytes = 8 * kCluster;
  options.backing = std::string(8 * kCluster, 'b');
  MemoryImage image(options);
  ASSERT_TRUE(image.discard({kCluster, 2 * kCluster}).ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 'b'));
  EXPECT_TRUE(image.reads_as({kCluster, 2 * kCluster}, 0));
  EXPECT_TRUE(image.reads_as({3 * kCluster, kCluster}, 'b'));
  EXPECT_TRUE(image.close_and_check().ok());
}

TEST(MappingChanger, ZeroesToTheEndOfAPartialSectorAskForNothingBehindIt) {
  // Inside the last cluster of the image, whose end is no multiple of a sector,
  // over a backing file that goes on behind it.
  MemoryImageOptions options;
  options.size_bytes = kMib;
  options.backing = std::string(2 * kMib, 'b');
  std::string bytes;
  {
    MemoryImage image(options);
    bytes = image.memory().content();
  }
  testing::set_big64(&bytes, 24, kMib - 300);
  options.bytes = bytes;
  MemoryImage image(options);
  ASSERT_EQ(image.driver().length_bytes(), kMib - 300);
  // Whoever asks what lies there fails.
  image.backing().fail_at({.range = ByteRange{kMib, UINT64_MAX - kMib}}, EIO, 1,
                          testing::ObservingDriver::Repeat::kFromThenOn);
  EXPECT_TRUE(
      image.driver().write_zeroes({kMib - kCluster, kCluster}, {}).ok());
  const auto part = image.driver().write_zeroes({kMib - 4096, 4096}, {});
  EXPECT_TRUE(part.ok()) << part;
  EXPECT_EQ(image.backing().failure_count(), 0u);
  EXPECT_TRUE(image.reads_as({kMib - kCluster, kCluster}, 0));
  EXPECT_TRUE(image.reads_as({kMib - 2 * kCluster, kCluster}, 'b'));
}

TEST(MappingChanger, AnErrorHoldsNothingBack) {
  MemoryImage image(image_of("", {"write -P 1 0 64k"}));
  image.file().fail_at({.purpose = Purpose::kL2Load}, EIO);
  EXPECT_FALSE(image.discard({0, kCluster}).ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  EXPECT_TRUE(image.discard({0, kCluster}).ok());
  EXPECT_TRUE(image.close_and_check().ok());
}

}  // namespace
}  // namespace spindle::qcow2

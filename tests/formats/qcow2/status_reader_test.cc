#include "formats/qcow2/status_reader.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

BlockStatus status_of(StatusReader& reader, ByteRange range) {
  const auto status = reader.status(range, BlockStatusScope::kThisLayer);
  EXPECT_TRUE(status.ok()) << status.status();
  return status.ok() ? *status : BlockStatus();
}

TEST(StatusReader, RunsGoOnAcrossTablesAndEndWhereTheKindChanges) {
  // A table covers 32 KiB.
  testing::OpenImage opened(testing::qemu_image_bytes(
      kMiB, "cluster_size=512", {"write -z 100k 300k", "write -P 1 700k 512"}));
  StatusReader reader(opened.image.get());
  const BlockStatus nothing = status_of(reader, {0, kMiB});
  EXPECT_EQ(nothing.length, 100u << 10);
  EXPECT_FALSE(nothing.allocated || nothing.data);
  EXPECT_TRUE(nothing.zero);
  const BlockStatus zeroes = status_of(reader, {100 << 10, kMiB / 2});
  EXPECT_EQ(zeroes.length, 300u << 10);
  EXPECT_TRUE(zeroes.allocated && zeroes.zero);
  EXPECT_FALSE(zeroes.data);
  const BlockStatus data = status_of(reader, {700 << 10, 300 << 10});
  EXPECT_EQ(data.length, 512u);
  EXPECT_TRUE(data.allocated && data.data && data.host_offset.has_value());
  EXPECT_FALSE(data.zero || data.end_of_image);
  const BlockStatus rest = status_of(reader, {kMiB - 512, 512});
  EXPECT_TRUE(rest.end_of_image);
}

TEST(StatusReader, LooksAtNoMoreThanSomeSlicesAtATime) {
  testing::OpenImage opened(
      testing::qemu_image_bytes(64 * kMiB, "cluster_size=512"));
  StatusReader reader(opened.image.get());
  uint64_t done = 0;
  int calls = 0;
  for (; done < 64 * kMiB; ++calls)
    done += status_of(reader, {done, 64 * kMiB - done}).length;
  EXPECT_EQ(done, 64 * kMiB);
  EXPECT_GT(calls, 1);
}

TEST(StatusReader, HolesUnderPreallocatedMetadataAreZeroes) {
  const testing::ImageFile image{testing::temporary_path("image"), "qcow2"};
  ASSERT_EQ(testing::qemu_create({.image = image,
                                  .size_bytes = 4 * kMiB,
                                  .options = "preallocation=metadata",
                                  .backing = std::nullopt}),
            absl::OkStatus());
  ASSERT_EQ(testing::qemu_io(image, {"write -P 1 1M 64k"}), absl::OkStatus());
  OpenOptions options;
  options.read_only = true;
  const auto driver = ImageOpener(builtin_drivers(), {})
                          .open(image.path, image.format, options);
  ASSERT_TRUE(driver.ok()) << driver.status();
  const auto hole =
      (*driver)->block_status({0, 4 * kMiB}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(hole.ok());
  EXPECT_EQ(hole->length, kMiB);
  EXPECT_TRUE(hole->zero && hole->data && hole->host_offset.has_value());
  const auto data =
      (*driver)->block_status({kMiB, 3 * kMiB}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(data->length, 64u << 10);
  EXPECT_FALSE(data->zero);
}

TEST(StatusReader, CountsByTheRefcountTableThatIsInUse) {
  // A refcount table of one cluster is enough for 8 MiB.
  const testing::ImageFile image{testing::temporary_path("grown"), "qcow2"};
  ASSERT_EQ(testing::qemu_create({.image = image,
                                  .size_bytes = kMiB,
                                  .options = "cluster_size=512",
                                  .backing = std::nullopt}),
            absl::OkStatus());
  const auto driver =
      ImageOpener(builtin_drivers(), {}).open(image.path, image.format, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  ASSERT_EQ((*driver)->resize(24 * kMiB, Preallocation::kMetadata),
            absl::OkStatus());
  ASSERT_EQ((*driver)->flush(), absl::OkStatus());
  const auto hole =
      (*driver)->block_status({2 * kMiB, kMiB}, BlockStatusScope::kWholeChain);
  ASSERT_TRUE(hole.ok()) << hole.status();
  EXPECT_TRUE(hole->data && hole->zero);
  EXPECT_EQ((*driver)->close(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::qcow2

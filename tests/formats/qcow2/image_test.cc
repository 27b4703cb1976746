#include "formats/qcow2/image.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/runtime_options.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;
using testing::OpenImage;
using testing::qemu_image_bytes;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;

TEST(Image, KnowsWhereItsMetadataLies) {
  OpenImage open(qemu_image_bytes(64 * kMib, "", {"write 0 64k"}));
  const MetadataKind kinds[] = {MetadataKind::kHeader,
                                MetadataKind::kRefcountTable,
                                MetadataKind::kRefcountBlock,
                                MetadataKind::kL1Table, MetadataKind::kL2Table};
  for (uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(open.image->extents().find_overlap({i * kCluster, kCluster}),
              kinds[i])
        << i;
  }
  EXPECT_FALSE(
      open.image->extents().find_overlap({5 * kCluster, kCluster}).has_value());
}

TEST(Image, OpeningReadsWhatReadingNeedsAndNoMore) {
  const std::string bytes = qemu_image_bytes(64 * kMib, "");
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  auto file = std::make_shared<ObservingDriver>(memory);
  const auto header = parse_header(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      bytes.size());
  ASSERT_TRUE(header.ok());
  const auto runtime = parse_runtime_options({}, *header);
  ASSERT_TRUE(runtime.ok());
  const auto image = Image::open(file, nullptr, *header, *runtime, nullptr);
  ASSERT_TRUE(image.ok());
  EXPECT_EQ(file->total_count(), 1u);
  EXPECT_EQ(file->count(Purpose::kL1Load), 1u);
  EXPECT_FALSE((*image)->prepared_for_writing());

  // A failure leaves it fit for another attempt.
  file->fail_at({.purpose = Purpose::kReftableLoad}, EIO);
  EXPECT_FALSE((*image)->prepare_for_writing().ok());
  EXPECT_FALSE((*image)->prepared_for_writing());
  EXPECT_TRUE((*image)->prepare_for_writing().ok());
  EXPECT_TRUE((*image)->prepared_for_writing());
  EXPECT_TRUE((*image)->prepare_for_writing().ok());
  EXPECT_EQ(file->count(Purpose::kReftableLoad), 2u);
  EXPECT_EQ(file->count(AccessKind::kWrite), 0u);
}

TEST(Image, PreparingAgainAfterItFailedHalfWay) {
  std::string bytes = qemu_image_bytes(64 * kMib, "");
  bytes[95] |= 4;  // an unknown autoclear bit, which is to be cleared
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  auto file = std::make_shared<ObservingDriver>(memory);
  const auto header = parse_header(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      bytes.size());
  ASSERT_TRUE(header.ok());
  const auto image = Image::open(file, nullptr, *header,
                                 *parse_runtime_options({}, *header), nullptr);
  ASSERT_TRUE(image.ok());
  file->fail_at({.purpose = Purpose::kHeaderUpdate}, EIO);
  EXPECT_FALSE((*image)->prepare_for_writing().ok());
  const absl::Status again = (*image)->prepare_for_writing();
  EXPECT_TRUE(again.ok()) << again;
}

}  // namespace
}  // namespace spindle::qcow2

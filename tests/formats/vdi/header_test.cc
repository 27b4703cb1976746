#include "formats/vdi/header.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "engine/byte_order.h"
#include "gtest/gtest.h"

namespace spindle::vdi {
namespace {

constexpr uint64_t kFileBytes = 4 << 20;

Header three_blocks() {
  Header header;
  header.map_offset = 512;
  header.data_offset = 1024;
  header.disk_bytes = 3 * kBlockBytes;
  header.block_count = 3;
  header.allocated_count = 2;
  return header;
}

TEST(VdiHeader, SaysWhatWasPutIntoIt) {
  const auto sector = new_header(three_blocks());
  EXPECT_TRUE(looks_like_vdi(sector));
  const auto header = parse_header(sector, kFileBytes);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->type, kDynamic);
  EXPECT_EQ(header->map_offset, 512u);
  EXPECT_EQ(header->data_offset, 1024u);
  EXPECT_EQ(header->disk_bytes, 3u * kBlockBytes);
  EXPECT_EQ(header->block_count, 3u);
  EXPECT_EQ(header->allocated_count, 2u);
}

TEST(VdiHeader, HasNewUuidsEachTime) {
  const auto one = new_header(three_blocks());
  const auto other = new_header(three_blocks());
  for (const size_t offset : {kImageUuidOffset, kSnapshotUuidOffset}) {
    EXPECT_FALSE(
        std::equal(&one[offset], &one[offset] + kUuidBytes, &other[offset]));
    EXPECT_EQ(one[offset + 7] >> 4, 4);
    EXPECT_EQ(one[offset + 8] >> 6, 2);
  }
  EXPECT_TRUE(
      std::equal(one.begin(), one.begin() + kImageUuidOffset, other.begin()));
}

TEST(VdiHeader, RoundsAnOddDiskUp) {
  auto sector = new_header(three_blocks());
  store_little64(&sector[kDiskSizeOffset], 2 * kBlockBytes + 1);
  EXPECT_EQ(parse_header(sector, kFileBytes)->disk_bytes,
            2u * kBlockBytes + 512);
  store_little64(&sector[kDiskSizeOffset], 3 * kBlockBytes + 1);
  EXPECT_FALSE(parse_header(sector, kFileBytes).ok());
}

TEST(VdiHeader, NeedsNoUuids) {
  auto sector = new_header(three_blocks());
  std::fill_n(&sector[kImageUuidOffset], 2 * kUuidBytes, uint8_t{0});
  EXPECT_TRUE(parse_header(sector, kFileBytes).ok());
}

struct BadField {
  const char* name;
  size_t offset;
  uint64_t value;
  size_t bytes;
  absl::StatusCode code;
  // Of the message.
  const char* parts[3];
};

class VdiBadHeader : public ::testing::TestWithParam<BadField> {};

TEST_P(VdiBadHeader, IsRefusedByNameValueAndLimit) {
  const BadField& bad = GetParam();
  auto sector = new_header(three_blocks());
  if (bad.bytes == 8) {
    store_little64(&sector[bad.offset], bad.value);
  } else {
    store_little32(&sector[bad.offset], static_cast<uint32_t>(bad.value));
  }
  const auto header = parse_header(sector, kFileBytes);
  EXPECT_EQ(header.status().code(), bad.code) << header.status();
  for (const char* part : bad.parts) {
    EXPECT_NE(header.status().message().find(part), std::string::npos)
        << header.status() << " lacks " << part;
  }
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnknown = absl::StatusCode::kUnimplemented;
constexpr auto kDamaged = absl::StatusCode::kDataLoss;

INSTANTIATE_TEST_SUITE_P(
    Fields, VdiBadHeader,
    ::testing::Values(
        BadField{"signature",
                 kSignatureOffset,
                 1,
                 4,
                 kInvalid,
                 {"signature", "0x00000001", "0xbeda107f"}},
        BadField{"version",
                 kVersionOffset,
                 0x10002,
                 4,
                 kUnknown,
                 {"version", "1.2", "1.1"}},
        BadField{"header_size",
                 kHeaderSizeOffset,
                 0x17f,
                 4,
                 kDamaged,
                 {"header size", "383", "384"}},
        BadField{"undo_image",
                 kImageTypeOffset,
                 3,
                 4,
                 kUnknown,
                 {"image type", "is 3", "1 (dynamic) and 2 (static)"}},
        BadField{"differencing_image",
                 kImageTypeOffset,
                 4,
                 4,
                 kUnknown,
                 {"image type", "is 4", "1 (dynamic) and 2 (static)"}},
        BadField{"map_unaligned",
                 kMapOffsetOffset,
                 513,
                 4,
                 kDamaged,
                 {"block map", "0x201", "512"}},
        BadField{"map_in_header",
                 kMapOffsetOffset,
                 0,
                 4,
                 kDamaged,
                 {"block map", "0", "512"}},
        BadField{"map_behind_data",
                 kMapOffsetOffset,
                 2048,
                 4,
                 kDamaged,
                 {"first block", "0x400", "0x80c"}},
        BadField{"data_unaligned",
                 kDataOffsetOffset,
                 1025,
                 4,
                 kDamaged,
                 {"first block", "0x401", "512"}},
        BadField{"data_in_map",
                 kDataOffsetOffset,
                 512,
                 4,
                 kDamaged,
                 {"first block", "0x200", "0x20c"}},
        BadField{"sector_size",
                 kSectorSizeOffset,
                 4096,
                 4,
                 kUnknown,
                 {"sector size", "4096", "512"}},
        BadField{"disk_beyond_map",
                 kDiskSizeOffset,
                 3 * kBlockBytes + 512,
                 8,
                 kDamaged,
                 {"disk size", "3146240", "3145728"}},
        BadField{"disk_beyond_limit",
                 kDiskSizeOffset,
                 UINT64_MAX,
                 8,
                 kDamaged,
                 {"disk size", "18446744073709551615", "562949819203584"}},
        BadField{"block_size",
                 kBlockSizeOffset,
                 2 << 20,
                 4,
                 kUnknown,
                 {"block size", "2097152", "1048576"}},
        BadField{"block_extra",
                 kBlockExtraOffset,
                 512,
                 4,
                 kUnknown,
                 {"block extra", "512", "0"}},
        BadField{"too_many_blocks",
                 kBlockCountOffset,
                 kMaxBlockCount + 1,
                 4,
                 kDamaged,
                 {"number of blocks", "536870785", "536870784"}},
        BadField{"too_few_blocks",
                 kBlockCountOffset,
                 2,
                 4,
                 kDamaged,
                 {"disk size", "3145728", "2097152"}},
        BadField{"link",
                 kLinkUuidOffset,
                 1,
                 4,
                 kUnknown,
                 {"link UUID", "over another", ""}},
        BadField{"parent",
                 kParentUuidOffset + 12,
                 1,
                 4,
                 kUnknown,
                 {"parent UUID", "over another", ""}}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(VdiBadHeader, TheMapEndsWithinTheFile) {
  Header header = three_blocks();
  header.block_count = kMaxBlockCount;
  header.data_offset = 0x80000000;
  const auto sector = new_header(header);
  EXPECT_TRUE(parse_header(sector, 512 + uint64_t{kMaxBlockCount} * 4).ok());
  const auto refused = parse_header(sector, 511 + uint64_t{kMaxBlockCount} * 4);
  EXPECT_EQ(refused.status().code(), kDamaged);
  EXPECT_NE(refused.status().message().find("0x80000000"), std::string::npos)
      << refused.status();
}

TEST(VdiBadHeader, AHeaderIsWhole) {
  const auto sector = new_header(three_blocks());
  for (const size_t length : {0, 64, 68, 511}) {
    const auto head = absl::MakeConstSpan(sector).first(length);
    EXPECT_FALSE(looks_like_vdi(head));
    EXPECT_EQ(parse_header(head, length).status().code(), kInvalid);
  }
}

}  // namespace
}  // namespace spindle::vdi

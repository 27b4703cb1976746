#include "formats/qcow/header.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "formats/qcow/layout.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow {
namespace {

using testing::MemoryDriver;
using testing::new_qcow;
using testing::QcowShape;

absl::StatusOr<Header> read(const std::string& image) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, image);
  ByteChannel channel(memory);
  return read_header(&channel);
}

TEST(Header, OfANewImage) {
  const auto header = read(new_qcow({.size_bytes = uint64_t{5} << 30}));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->disk_bytes(), uint64_t{5} << 30);
  EXPECT_EQ(header->cluster_size_bytes(), 4096u);
  EXPECT_EQ(header->l2_table_bytes(), 4096u);
  EXPECT_EQ(header->l1_entry_coverage_bytes(), uint64_t{2} << 20);
  EXPECT_EQ(header->l1_entry_count(), 2560u);
  EXPECT_EQ(header->backing_filename, "");
  EXPECT_FALSE(header->is_encrypted());
}

// QEMU says how long a disk is: qcow_differential_test.cc.
TEST(Header, ADiskEndsWithItsLastWholeSector) {
  for (const auto& [stated, disk] : std::vector<std::pair<uint64_t, uint64_t>>{
           {2, 0}, {511, 0}, {512, 512}, {1000, 512}, {1024, 1024}}) {
    const auto header = read(new_qcow({.size_bytes = stated}));
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->disk_bytes(), disk) << stated;
    EXPECT_EQ(header->l1_entry_count(), 1u);
  }
}

TEST(Header, NamesABackingFile) {
  const auto header = read(new_qcow({.backing_filename = "base.img"}));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->backing_filename, "base.img");
  // An offset or a length of zero: none.
  std::string image = new_qcow({.backing_filename = "base.img"});
  store_big64(&image[kBackingFileOffsetOffset], 0);
  ASSERT_TRUE(read(image).ok());
  EXPECT_EQ(read(image)->backing_filename, "");
  image = new_qcow({.backing_filename = "base.img"});
  store_big32(&image[kBackingFileSizeOffset], 0);
  ASSERT_TRUE(read(image).ok());
  EXPECT_EQ(read(image)->backing_filename, "");
}

TEST(Header, SerializesWhatItParsed) {
  for (const std::string& name : {"", "b", "../somewhere/base"}) {
    std::string image = new_qcow({.size_bytes = 12345,
                                  .cluster_bits = 16,
                                  .l2_bits = 6,
                                  .crypt_method = kCryptAes,
                                  .backing_filename = name});
    store_big32(&image[kModificationTimeOffset], 77);
    const auto header = read(image);
    ASSERT_TRUE(header.ok()) << header.status();
    const std::vector<uint8_t> bytes = serialize_header(*header);
    EXPECT_EQ(std::string(bytes.begin(), bytes.end()),
              image.substr(0, bytes.size()));
    EXPECT_EQ(bytes.size(), kHeaderBytes + name.size());
  }
}

struct Damage {
  std::string name;
  std::function<void(std::string* image)> change;
  absl::StatusCode code;
  std::vector<std::string> says;
};

void set32(std::string* image, size_t offset, uint32_t value) {
  store_big32(image->data() + offset, value);
}
void set64(std::string* image, size_t offset, uint64_t value) {
  store_big64(image->data() + offset, value);
}

// In the order in which the fields are looked at.
std::vector<Damage> damages() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  constexpr auto kUnknown = absl::StatusCode::kUnimplemented;
  constexpr auto kDamaged = absl::StatusCode::kDataLoss;
  constexpr uint64_t kHuge = uint64_t{1} << 63;
  const auto field32 = [](size_t offset, uint32_t value) {
    return [=](std::string* image) { set32(image, offset, value); };
  };
  const auto field64 = [](size_t offset, uint64_t value) {
    return [=](std::string* image) { set64(image, offset, value); };
  };
  const auto byte = [](size_t offset, char value) {
    return [=](std::string* image) { (*image)[offset] = value; };
  };
  return {
      {"Empty",
       [](std::string* i) { i->clear(); },
       kInvalid,
       {"0 bytes", "48"}},
      {"Short", [](std::string* i) { i->resize(47); }, kInvalid, {"47", "48"}},
      {"Magic", field32(kMagicOffset, 0x514649fa), kInvalid, {"0x514649fa"}},
      {"Version0", field32(kVersionOffset, 0), kUnknown, {"version is 0"}},
      {"Version2", field32(kVersionOffset, 2), kUnknown, {"is 2", "qcow2"}},
      {"Version4", field32(kVersionOffset, 4), kUnknown, {"version is 4"}},
      // CVE-2014-0222: a shift by more bits than a number has.
      {"ClusterBits8",
       byte(kClusterBitsOffset, 8),
       kDamaged,
       {"cluster_bits is 8", "9 to 16"}},
      {"ClusterBits17",
       byte(kClusterBitsOffset, 17),
       kDamaged,
       {"cluster_bits is 17", "9 to 16"}},
      {"ClusterBits255",
       byte(kClusterBitsOffset, '\xff'),
       kDamaged,
       {"cluster_bits is 255"}},
      {"L2Bits5",
       byte(kL2BitsOffset, 5),
       kDamaged,
       {"l2_bits is 5", "6 to 13"}},
      {"L2Bits14", byte(kL2BitsOffset, 14), kDamaged, {"l2_bits is 14"}},
      {"L2Bits200", byte(kL2BitsOffset, '\xc8'), kDamaged, {"l2_bits is 200"}},
      {"Size0", field64(kSizeOffset, 0), kDamaged, {"size is 0", "2 to"}},
      {"Size1", field64(kSizeOffset, 1), kDamaged, {"size is 1"}},
      // CVE-2014-0223: an L1 table whose size overflows.
      {"SizeOf512T",
       field64(kSizeOffset, uint64_t{512} << 40),
       kDamaged,
       {"size is 562949953421312", "to 562949951324160"}},
      {"SizeOf2To63", field64(kSizeOffset, kHuge), kDamaged, {"size is"}},
      {"LargestSize",
       field64(kSizeOffset, ~uint64_t{0}),
       kDamaged,
       {"size is"}},
      {"Crypt2",
       field32(kCryptMethodOffset, 2),
       kUnknown,
       {"crypt_method is 2"}},
      {"L1AtZero",
       field64(kL1TableOffsetOffset, 0),
       kDamaged,
       {"l1_table_offset is 0", "48 bytes"}},
      {"L1InHeader",
       field64(kL1TableOffsetOffset, 40),
       kDamaged,
       {"l1_table_offset is 40"}},
      {"L1BeyondEnd",
       field64(kL1TableOffsetOffset, 4096),
       kDamaged,
       {"l1_table_offset is 4096", "1 entries", "560 bytes"}},
      {"L1Overflows",
       field64(kL1TableOffsetOffset, ~uint64_t{0}),
       kDamaged,
       {"l1_table_offset is"}},
      {"L1LongerThanTheFile",
       field64(kSizeOffset, uint64_t{511} << 40),
       kDamaged,
       {"267911168 entries"}},
      {"LongName",
       [](std::string* i) {
         set64(i, kBackingFileOffsetOffset, 48);
         set32(i, kBackingFileSizeOffset, 1024);
         i->resize(8192);
       },
       kDamaged,
       {"backing_file_size is 1024", "1023"}},
      {"NameInHeader",
       [](std::string* i) {
         set64(i, kBackingFileOffsetOffset, 47);
         set32(i, kBackingFileSizeOffset, 4);
       },
       kDamaged,
       {"backing_file_offset is 47"}},
      {"NameBeyondEnd",
       [](std::string* i) {
         set64(i, kBackingFileOffsetOffset, 555);
         set32(i, kBackingFileSizeOffset, 6);
       },
       kDamaged,
       {"backing_file_offset is 555", "560"}},
      {"NameOverflows",
       [](std::string* i) {
         set64(i, kBackingFileOffsetOffset, ~uint64_t{0} - 2);
         set32(i, kBackingFileSizeOffset, 6);
       },
       kDamaged,
       {"backing_file_offset is"}},
      {"ZeroInName",
       [](std::string* i) {
         set64(i, kBackingFileOffsetOffset, 500);
         set32(i, kBackingFileSizeOffset, 6);
       },
       kDamaged,
       {"zero byte"}},
  };
}

class DamagedHeader : public ::testing::TestWithParam<Damage> {};
INSTANTIATE_TEST_SUITE_P(Fields, DamagedHeader, ::testing::ValuesIn(damages()),
                         [](const auto& info) { return info.param.name; });

TEST_P(DamagedHeader, IsRefusedAndNamed) {
  std::string image = new_qcow();
  ASSERT_TRUE(read(image).ok());
  GetParam().change(&image);
  const absl::Status status = read(image).status();
  EXPECT_EQ(status.code(), GetParam().code) << status;
  for (const std::string& part : GetParam().says) {
    EXPECT_TRUE(absl::StrContains(status.message(), part))
        << status << " does not say " << part;
  }
}

TEST(Header, TakesTheLimits) {
  for (const uint32_t cluster_bits : {kMinClusterBits, kMaxClusterBits}) {
    for (const uint32_t l2_bits : {kMinL2Bits, kMaxL2Bits}) {
      const auto header =
          read(new_qcow({.cluster_bits = cluster_bits, .l2_bits = l2_bits}));
      EXPECT_TRUE(header.ok()) << header.status();
    }
  }
  const std::string name(kMaxBackingFilenameBytes, 'n');
  const auto header = read(new_qcow({.backing_filename = name}));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->backing_filename, name);
}

TEST(Header, NoBytesAbort) {
  std::mt19937_64 random(testing::test_seed());
  const std::string image = new_qcow({.backing_filename = "base"});
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = image;
    for (int flips = 0; flips <= i % 4; ++flips)
      damaged[random() % kHeaderBytes] = static_cast<char>(random());
    const auto header = read(damaged);
    if (!header.ok()) continue;
    EXPECT_LE(header->l1_table_offset + header->l1_table_bytes(),
              damaged.size());
  }
}

TEST(LooksLikeQcow, KnowsItsVersionOnly) {
  std::string image = new_qcow();
  const auto looks = [&] {
    return looks_like_qcow(absl::MakeConstSpan(
        reinterpret_cast<const uint8_t*>(image.data()), image.size()));
  };
  EXPECT_TRUE(looks());
  for (const uint32_t version : {0, 2, 3, 256}) {
    store_big32(&image[kVersionOffset], version);
    EXPECT_FALSE(looks()) << version;
  }
  store_big32(&image[kVersionOffset], 1);
  image.resize(kHeaderBytes - 1);
  EXPECT_FALSE(looks());
  image = new_qcow();
  image[0] = 'q';
  EXPECT_FALSE(looks());
}

}  // namespace
}  // namespace spindle::qcow

#include "formats/qcow2/header.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/byte_order.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::read_file;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::temporary_path;

using Bytes = std::vector<uint8_t>;

// An image that qemu-img makes.
Bytes qemu_image(const std::string& options,
                 const std::vector<std::string>& more = {}) {
  const std::string path = temporary_path("image");
  std::vector<std::string> command = {"qemu-img", "create", "-q",
                                      "-u",       "-f",     "qcow2"};
  if (!options.empty()) command.insert(command.end(), {"-o", options});
  command.insert(command.end(), more.begin(), more.end());
  command.insert(command.end(), {path, "10M"});
  const auto created = run_tool_ok(command);
  EXPECT_TRUE(created.ok()) << created.status();
  const auto bytes = read_file(path);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  return bytes.ok() ? *bytes : Bytes();
}

absl::StatusOr<Header> parse(const Bytes& image) {
  return parse_header(image, image.size());
}

TEST(Header, ReadsWhatQemuWrites) {
  const auto header =
      parse(qemu_image("cluster_size=4k,refcount_bits=8,lazy_refcounts=on",
                       {"-b", "base.img", "-F", "vmdk"}));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->version, 3u);
  EXPECT_EQ(header->cluster_size_bytes(), 4096u);
  EXPECT_EQ(header->size_bytes, uint64_t{10} << 20);
  EXPECT_EQ(header->refcount_bits(), 8u);
  EXPECT_EQ(header->refcount_block_entry_count(), 4096u);
  EXPECT_EQ(header->l2_entry_count(), 512u);
  EXPECT_EQ(header->l1_entry_count, 5u);
  EXPECT_EQ(header->l1_table_offset, 3u * 4096);
  EXPECT_EQ(header->refcount_table_offset, 4096u);
  EXPECT_EQ(header->refcount_table_clusters, 1u);
  EXPECT_EQ(header->backing_filename, "base.img");
  EXPECT_EQ(header->backing_format, "vmdk");
  EXPECT_EQ(header->header_length, kVersion3HeaderBytes);
  EXPECT_TRUE(header->lazy_refcounts());
  EXPECT_FALSE(header->is_dirty());
  EXPECT_FALSE(header->is_corrupt());
  EXPECT_TRUE(check_supported(*header, false).ok());
}

TEST(Header, ReadsVersion2) {
  const auto header = parse(qemu_image("compat=0.10"));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->version, 2u);
  EXPECT_EQ(header->header_length, kVersion2HeaderBytes);
  EXPECT_EQ(header->refcount_bits(), 16u);
  EXPECT_TRUE(header->extensions.empty());
}

TEST(Header, KnowsTheFeatureNamesThatQemuWrites) {
  const auto header = parse(qemu_image(""));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->extensions.size(), 1u);
  EXPECT_EQ(header->extensions[0], default_feature_names());
  EXPECT_EQ(feature_name(*header, kFeatureTypeIncompatible, 4),
            "extended L2 entries (bit 4)");
  EXPECT_EQ(feature_name(*header, kFeatureTypeIncompatible, 9), "bit 9");
}

TEST(Header, SerialisesToTheBytesThatItWasParsedFrom) {
  for (const char* options :
       {"", "compat=0.10", "cluster_size=512", "lazy_refcounts=on"}) {
    for (bool backing : {false, true}) {
      SCOPED_TRACE(absl::StrCat(options, backing ? " backing" : ""));
      const Bytes image = qemu_image(
          options, backing ? std::vector<std::string>{"-b", "b", "-F", "raw"}
                           : std::vector<std::string>{});
      const auto header = parse(image);
      ASSERT_TRUE(header.ok()) << header.status();
      auto bytes = serialize_header(*header);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      bytes->resize(header->cluster_size_bytes());
      EXPECT_TRUE(std::equal(bytes->begin(), bytes->end(), image.begin()));
    }
  }
}

TEST(Header, KeepsUnknownExtensionsAndFields) {
  Header header = *parse(qemu_image(""));
  header.extensions.push_back({0x12345678, "odd length"});
  header.unknown_fields = std::string("\x01\x02\x03\x04\x05\x06\x07\x08", 8);
  header.header_length = kVersion3HeaderBytes + 8;
  auto bytes = serialize_header(header);
  ASSERT_TRUE(bytes.ok());
  bytes->resize(header.cluster_size_bytes() * 8);
  const auto again = parse(*bytes);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, header);
}

TEST(Header, SaysFromTheFirst72BytesHowMuchToRead) {
  Bytes image = qemu_image("cluster_size=4k");
  const uint64_t length = image.size();
  image.resize(kVersion2HeaderBytes);
  const auto wanted = header_read_length(image, length);
  ASSERT_TRUE(wanted.ok()) << wanted.status();
  EXPECT_EQ(*wanted, 4096u);
}

TEST(Header, ReadsNoMoreThanTheFileHas) {
  const auto length =
      header_read_length(Bytes(qemu_image("cluster_size=2M")), 100000);
  ASSERT_TRUE(length.ok());
  EXPECT_EQ(*length, 100000u);
}

// ---- Damage -----------------------------------------------------------------

struct Damage {
  const char* name;
  std::function<void(Bytes*)> apply;
  absl::StatusCode code;
  const char* message;
};

Damage set32(const char* name, size_t offset, uint32_t value,
             absl::StatusCode code, const char* message) {
  return {name, [=](Bytes* image) { store_big32(&(*image)[offset], value); },
          code, message};
}
Damage set64(const char* name, size_t offset, uint64_t value,
             absl::StatusCode code, const char* message) {
  return {name, [=](Bytes* image) { store_big64(&(*image)[offset], value); },
          code, message};
}

constexpr absl::StatusCode kLoss = absl::StatusCode::kDataLoss;
constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;
constexpr absl::StatusCode kUnknown = absl::StatusCode::kUnimplemented;

std::vector<Damage> damages() {
  return {
      {"Empty", [](Bytes* b) { b->clear(); }, kInvalid, "magic"},
      {"Cut in the fields", [](Bytes* b) { b->resize(71); }, kLoss,
       "header_length is 0"},
      {"Cut in version 3", [](Bytes* b) { b->resize(103); }, kLoss,
       "header_length is 0"},
      {"Cut before the tables", [](Bytes* b) { b->resize(4096); }, kLoss,
       "beyond the end"},
      set32("magic", kMagicOffset, 0x514649fa, kInvalid, "magic"),
      set32("version 1", kVersionOffset, 1, kUnknown, "version is 1"),
      set32("version 4", kVersionOffset, 4, kUnknown, "version is 4"),
      set32("cluster_bits 8", kClusterBitsOffset, 8, kLoss,
            "cluster_bits is 8"),
      set32("cluster_bits 22", kClusterBitsOffset, 22, kLoss,
            "cluster_bits is 22"),
      set32("cluster_bits 2^32-1", kClusterBitsOffset, 0xffffffff, kLoss,
            "cluster_bits"),
      set64("size 2^63", kSizeOffset, uint64_t{1} << 63, kLoss, "size is"),
      set64("size beyond L1", kSizeOffset, uint64_t{1} << 40, kLoss,
            "l1_size is 5"),
      set32("crypt 3", kCryptMethodOffset, 3, kUnknown, "crypt_method is 3"),
      set32("L1 4194305", kL1SizeOffset, (32u << 20) / 8 + 1, kLoss,
            "l1_size is 4194305"),
      set32("L1 2^32-1", kL1SizeOffset, 0xffffffff, kLoss, "l1_size"),
      set32("L1 too long for the file", kL1SizeOffset, 4096, kLoss,
            "beyond the end"),
      set64("L1 at 0", kL1TableOffsetOffset, 0, kLoss, "L1 table at offset 0"),
      set64("L1 unaligned", kL1TableOffsetOffset, 0x3008, kLoss, "not aligned"),
      set64("L1 beyond the end", kL1TableOffsetOffset, 1 << 20, kLoss,
            "beyond the end"),
      set64("L1 near 2^64", kL1TableOffsetOffset, 0xfffffffffffff000, kLoss,
            "beyond what a file can have"),
      set64("L1 near 2^63", kL1TableOffsetOffset, kMaxFileBytes, kLoss,
            "beyond what a file can have"),
      set64("L1 on the refcount table", kL1TableOffsetOffset, 0x1000, kLoss,
            "overlaps the L1"),
      set64("refcount table at 0", kRefcountTableOffsetOffset, 0, kLoss,
            "refcount table"),
      set64("refcount table unaligned", kRefcountTableOffsetOffset, 0x1001,
            kLoss, "not aligned"),
      set64("refcount table beyond", kRefcountTableOffsetOffset, 1 << 20, kLoss,
            "beyond"),
      set32("no refcount table", kRefcountTableClustersOffset, 0, kLoss,
            "no refcount table"),
      set32("refcount table 2049", kRefcountTableClustersOffset, 2049, kLoss,
            "limit is 2048"),
      set32("refcount table 2^32-1", kRefcountTableClustersOffset, 0xffffffff,
            kLoss, "limit"),
      set32("snapshots 65537", kSnapshotCountOffset, 65537, kLoss,
            "nb_snapshots is 65537"),
      set32("snapshots at 0", kSnapshotCountOffset, 1, kLoss,
            "snapshot table at offset 0"),
      set64("snapshots unaligned", kSnapshotsOffsetOffset, 3, kLoss,
            "snapshot table"),
      set32("refcount_order 7", kRefcountOrderOffset, 7, kLoss,
            "refcount_order is 7"),
      set32("header_length 96", kHeaderLengthOffset, 96, kLoss,
            "header_length is 96"),
      set32("header_length 4104", kHeaderLengthOffset, 4104, kLoss,
            "limit is 4096"),
      {"compression type without its bit",
       [](Bytes* b) { (*b)[kCompressionTypeOffset] = 1; }, kLoss,
       "compression_type is 1"},
      {"compression type 2", [](Bytes* b) { (*b)[kCompressionTypeOffset] = 2; },
       kUnknown, "compression_type is 2"},
      set64("compression bit without a type", kIncompatibleFeaturesOffset,
            kIncompatibleCompressionType, kLoss, "not zlib"),
      set64("subclusters of 128 bytes", kIncompatibleFeaturesOffset,
            kIncompatibleExtendedL2, kLoss, "extended L2"),
      set64("backing name beyond the cluster", kBackingFileOffsetOffset, 4097,
            kLoss, "backing_file_offset is 4097"),
      set32("backing name 1024", kBackingFileSizeOffset, 1024, kLoss,
            "limit is 1023"),
      {"backing name across the cluster's end",
       [](Bytes* b) { store_big64(&(*b)[kBackingFileOffsetOffset], 4090); },
       kLoss, "backing_file_size is 8"},
      set32("extension too long", kVersion3HeaderBytes + 4, 0xffffffff, kLoss,
            "0xe2792aca"),
      set32("backing format too long", kVersion3HeaderBytes + 4, 16, kLoss,
            "backing format"),
  };
}

TEST(Header, RefusesDamageAndNamesIt) {
  const Bytes good =
      qemu_image("cluster_size=4k", {"-b", "base.img", "-F", "vmdk"});
  ASSERT_TRUE(parse(good).ok());
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.name);
    Bytes image = good;
    damage.apply(&image);
    const auto header = parse(image);
    EXPECT_EQ(header.status().code(), damage.code) << header.status();
    EXPECT_NE(header.status().message().find(damage.message), std::string::npos)
        << header.status();
  }
}

TEST(Header, AcceptsATableWhoseLastClusterIsCutShort) {
  Bytes image = qemu_image("cluster_size=4k");
  image.resize(3 * 4096 + 8);  // of 40 bytes of L1
  EXPECT_TRUE(parse(image).ok()) << parse(image).status();
  image.resize(3 * 4096);
  EXPECT_EQ(parse(image).status().code(), kLoss);
}

// ---- What is odd, and accepted as QEMU accepts it ---------------------------

TEST(Header, TheHeadersLengthNeedNotBeAMultipleOf8) {
  for (const size_t more : {1, 3, 8, 11}) {
    Header header = *parse(qemu_image("cluster_size=4k"));
    header.extensions.push_back({0x12345678, "odd length"});
    header.unknown_fields = std::string(more, 'x');
    header.header_length = kVersion3HeaderBytes + static_cast<uint32_t>(more);
    auto bytes = serialize_header(header);
    ASSERT_TRUE(bytes.ok());
    bytes->resize(header.cluster_size_bytes() * 8);
    const auto again = parse(*bytes);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, header);
  }
}

TEST(Header, TheBackingFilesNameMayBeInTheHeader) {
  const Bytes good =
      qemu_image("cluster_size=4k", {"-b", "base.img", "-F", "vmdk"});
  Bytes image = good;
  store_big64(&image[kBackingFileOffsetOffset], 1);
  store_big32(&image[kBackingFileSizeOffset], 0);
  auto header = parse(image);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->backing_filename, "");
  store_big32(&image[kBackingFileSizeOffset], 2);
  header = parse(image);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->backing_filename, "FI");  // of the magic
  EXPECT_TRUE(header->extensions.empty());
}

TEST(Header, TheBackingFilesNameEndsAtAZeroByte) {
  Bytes image = qemu_image("cluster_size=4k", {"-b", "base.img", "-F", "vmdk"});
  store_big32(&image[kBackingFileSizeOffset], 100);
  const auto header = parse(image);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->backing_filename, "base.img");
}

// Who writes nothing can read them: as zeroes, or what else is there.
TEST(Header, ForReadingTablesMayOverlapOrLieBeyondTheEnd) {
  const Bytes good = qemu_image("cluster_size=4k");
  for (const uint64_t place :
       {uint64_t{0}, uint64_t{0x1000}, uint64_t{1} << 40}) {
    Bytes image = good;
    store_big64(&image[kL1TableOffsetOffset], place);
    EXPECT_EQ(parse(image).status().code(), kLoss);
    const auto header =
        parse_header(image, image.size(), TableChecks::kForReading);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(check_table_places(*header, image.size()), parse(image).status());
  }
  // What no file can have is refused by all.
  Bytes image = good;
  store_big64(&image[kL1TableOffsetOffset], kMaxFileBytes);
  for (const auto checks : {TableChecks::kForReading, TableChecks::kForCheck}) {
    EXPECT_EQ(parse_header(image, image.size(), checks).status().code(), kLoss);
  }
}

TEST(Header, OnlyACheckGoesOnWithoutRefcountsAndWithTooManySnapshots) {
  const Bytes good = qemu_image("cluster_size=4k");
  Bytes no_table = good;
  store_big32(&no_table[kRefcountTableClustersOffset], 0);
  Bytes snapshots = good;
  store_big32(&snapshots[kSnapshotCountOffset], 65537);
  for (const Bytes& image : {no_table, snapshots}) {
    EXPECT_EQ(parse_header(image, image.size(), TableChecks::kForReading)
                  .status()
                  .code(),
              kLoss);
    EXPECT_TRUE(parse_header(image, image.size(), TableChecks::kForCheck).ok());
  }
}

// ---- What is not supported --------------------------------------------------

TEST(Header, ARawDataFileIsADataFile) {
  Header header = *parse(qemu_image(""));
  header.autoclear_features = kAutoclearDataFileRaw;
  EXPECT_EQ(check_known(header).code(), kLoss);
  header.incompatible_features = kIncompatibleDataFile;
  EXPECT_TRUE(check_known(header).ok());
}

TEST(Header, RefusesFeaturesThatAreMissingByName) {
  const Header good = *parse(qemu_image(""));
  const struct {
    const char* message;
    std::function<void(Header*)> apply;
    bool only_for_writing;
  } cases[] = {
      {"bit 40",
       [](Header* h) { h->incompatible_features = uint64_t{1} << 40; }, false},
      {"corrupt",
       [](Header* h) { h->incompatible_features = kIncompatibleCorrupt; },
       true},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.message);
    Header header = good;
    c.apply(&header);
    for (bool read_only : {false, true}) {
      const absl::Status status = check_supported(header, read_only);
      if (read_only && c.only_for_writing) {
        EXPECT_TRUE(status.ok()) << status;
        continue;
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
      EXPECT_NE(status.message().find(c.message), std::string::npos) << status;
    }
  }
}

// A dirty image is repaired when it is opened for writing.
TEST(Header, DirtyImagesAreSupported) {
  Header header = *parse(qemu_image(""));
  header.incompatible_features = kIncompatibleDirty;
  EXPECT_TRUE(check_supported(header, /*read_only=*/true).ok());
  EXPECT_TRUE(check_supported(header, /*read_only=*/false).ok());
}

TEST(Header, NamesUnknownFeaturesFromTheImagesOwnTable) {
  Header header = *parse(qemu_image(""));
  std::string entry("\x00\x07purple clusters", 17);
  entry.resize(kFeatureNameEntryBytes, '\0');
  header.extensions[0].data += entry;
  header.incompatible_features = 1 << 7;
  const absl::Status status = check_supported(header, true);
  EXPECT_NE(status.message().find("purple clusters (bit 7)"), std::string::npos)
      << status;
}

TEST(Header, DoesNotRepeatUnprintableNames) {
  Header header = *parse(qemu_image(""));
  std::string entry("\x00\x07\x1b[31m", 7);
  entry.resize(kFeatureNameEntryBytes, '\0');
  header.extensions[0].data = entry;
  EXPECT_EQ(feature_name(header, kFeatureTypeIncompatible, 7), "bit 7");
}

// ---- Random bytes -----------------------------------------------------------

TEST(Header, SurvivesRandomDamage) {
  std::mt19937_64 random(::spindle::testing::test_seed());
  const Bytes good =
      qemu_image("cluster_size=512", {"-b", "base.img", "-F", "vmdk"});
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes image = good;
    for (int changes = 1 + static_cast<int>(random() % 4); changes > 0;
         --changes) {
      image[random() % 512] = static_cast<uint8_t>(random());
    }
    if (random() % 8 == 0) image.resize(random() % image.size());
    const auto header = parse(image);
    if (!header.ok()) continue;
    ++accepted;
    const auto bytes = serialize_header(*header);
    if (bytes.ok()) {
      EXPECT_LE(bytes->size(), header->cluster_size_bytes());
    }
    check_supported(*header, false).IgnoreError();
  }
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace spindle::qcow2

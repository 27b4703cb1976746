#include "formats/qcow2/qcow2_driver.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using testing::get_big64;
using testing::MemoryDriver;
using testing::ObservingDriver;
using testing::qemu_image_bytes;
using testing::read_bytes;
using testing::reads_as;
using testing::run_tool_ok;
using testing::set_big64;
using testing::temporary_path;
using testing::write_fill;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;
constexpr uint64_t kCopied = uint64_t{1} << 63;
// Where qemu-img puts things into an image of 64 KiB clusters whose first
// clusters were written.
constexpr uint64_t kReftable = 1 * kCluster;
constexpr uint64_t kL1 = 3 * kCluster;
constexpr uint64_t kL2 = 4 * kCluster;

struct File {
  explicit File(const std::string& bytes, bool read_only = false)
      : memory(std::make_shared<MemoryDriver>(
            MemoryDriver::Options{.read_only = read_only})),
        driver(std::make_shared<ObservingDriver>(memory)) {
    memory->set_content(0, bytes);
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(bool read_only) {
    OpenOptions options;
    options.read_only = read_only;
    return open_qcow2(driver, options, {});
  }
  std::string content() const { return memory->content(); }
  bool is_marked_corrupt() const { return (content()[79] & 2) != 0; }

  std::shared_ptr<MemoryDriver> memory;
  std::shared_ptr<ObservingDriver> driver;
};

std::string written_image(const std::string& options = "") {
  return qemu_image_bytes(64 * kMib, options,
                          {"write -P 1 0 64k", "write -P 2 64k 64k"});
}

// ---- What is refused at open ------------------------------------------------

std::string slurp(const std::string& path) {
  const auto bytes = testing::read_file(path);
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  ::unlink(path.c_str());
  return std::string(bytes->begin(), bytes->end());
}

// Runs qemu-img with the arguments, and returns the image's bytes.
std::string made_by(const std::vector<std::vector<std::string>>& commands,
                    const std::string& path) {
  for (const std::vector<std::string>& command : commands) {
    const auto output = run_tool_ok(command);
    EXPECT_TRUE(output.ok()) << output.status();
  }
  return slurp(path);
}

TEST(Qcow2Open, RefusesFeaturesByNameAndTouchesNothing) {
  std::string with_corrupt_bit = written_image();
  with_corrupt_bit[79] |= 2;
  std::string with_unknown_bit = written_image();
  with_unknown_bit[75] = 1;  // bit 32
  std::string aes = written_image("compat=0.10");
  aes[35] = 1;
  // Its header does not say where the volume is.
  std::string luks = written_image();
  luks[35] = 2;

  constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
  constexpr auto kInvalidArgument = absl::StatusCode::kInvalidArgument;
  const struct {
    const char* name;  // what the message must say
    std::string bytes;
    absl::StatusCode code;
    bool opens_read_only = false;
  } cases[] = {
      {"crypto header", luks, kInvalidArgument},
      {"encrypt.key-secret", aes, kInvalidArgument},
      {"corrupt", with_corrupt_bit, kUnimplemented, true},
      {"bit 32", with_unknown_bit, kUnimplemented},
  };
  for (const auto& c : cases) {
    for (bool read_only : {false, true}) {
      SCOPED_TRACE(absl::StrCat(c.name, read_only ? " ro" : " rw"));
      File file(c.bytes);
      const auto opened = file.open(read_only);
      if (read_only && opened.ok()) {
        // What only a writer must understand may be read.
        EXPECT_TRUE(c.opens_read_only);
      } else {
        EXPECT_EQ(opened.status().code(), c.code) << opened.status();
        EXPECT_TRUE(absl::StrContains(
            absl::AsciiStrToLower(opened.status().message()), c.name))
            << opened.status();
      }
      EXPECT_TRUE(file.content() == c.bytes);
      EXPECT_EQ(file.driver->count(AccessKind::kWrite), 0u);
    }
  }
}

// Crafted tables, refused for writing; each with the byte offset and the number
// to put there.
struct Craft {
  const char* name;
  std::function<void(std::string*)> change;
};

TEST(Qcow2Open, RefusesDamagedTablesForWritingAndTouchesNothing) {
  const Craft cases[] = {
      {"L1 table unaligned",
       [](std::string* b) { set_big64(b, 40, kL1 + 512); }},
      {"L1 table beyond the file",
       [](std::string* b) { set_big64(b, 40, uint64_t{1} << 40); }},
      {"L1 table in the header", [](std::string* b) { set_big64(b, 40, 0); }},
      {"L1 table overlaps the refcount table",
       [](std::string* b) { set_big64(b, 40, kReftable); }},
      {"L1 table too small", [](std::string* b) { (*b)[39] = 0; }},
      {"refcount table beyond the file",
       [](std::string* b) { set_big64(b, 48, uint64_t{1} << 40); }},
      {"no refcount table", [](std::string* b) { (*b)[59] = 0; }},
      {"refcount block unaligned",
       [](std::string* b) { set_big64(b, kReftable, 2 * kCluster + 512); }},
      {"refcount block beyond the file",
       [](std::string* b) { set_big64(b, kReftable, uint64_t{1} << 40); }},
      {"refcount block is the L1 table",
       [](std::string* b) { set_big64(b, kReftable, kL1); }},
      {"refcount block twice",
       [](std::string* b) { set_big64(b, kReftable + 8, 2 * kCluster); }},
      {"L2 table unaligned",
       [](std::string* b) { set_big64(b, kL1, kCopied | (kL2 + 512)); }},
      {"L2 table beyond the file",
       [](std::string* b) { set_big64(b, kL1, kCopied | uint64_t{1} << 40); }},
      {"L2 table is the refcount table",
       [](std::string* b) { set_big64(b, kL1, kCopied | kReftable); }},
      {"L2 table is the L1 table",
       [](std::string* b) { set_big64(b, kL1, kCopied | kL1); }},
      {"immense size", [](std::string* b) { set_big64(b, 24, ~uint64_t{0}); }},
      {"cluster_bits 8", [](std::string* b) { (*b)[23] = 8; }},
      {"cluster_bits 22", [](std::string* b) { (*b)[23] = 22; }},
      {"refcount_order 7", [](std::string* b) { (*b)[99] = 7; }},
  };
  const std::string good = written_image();
  for (const Craft& c : cases) {
    SCOPED_TRACE(c.name);
    std::string bytes = good;
    c.change(&bytes);
    File file(bytes);
    const auto opened = file.open(/*read_only=*/false);
    EXPECT_FALSE(opened.ok());
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
    EXPECT_TRUE(file.content() == bytes);
    // For reading it may open; the file stays what it is whatever is read.
    File again(bytes);
    const auto reader = again.open(/*read_only=*/true);
    if (reader.ok()) {
      read_bytes(**reader, {0, 4 * kCluster}).IgnoreError();
      EXPECT_TRUE((*reader)->close().ok());
    }
    EXPECT_TRUE(again.content() == bytes);
  }
}

// Whoever only reads gets at the rest.
TEST(Qcow2Open, ForReadingWhatLiesBeyondTheEndOfTheFileIsZeroes) {
  const std::string good = written_image();
  const Craft cases[] = {
      {"L1 table", [](std::string* b) { set_big64(b, 40, uint64_t{1} << 40); }},
      {"L2 table",
       [](std::string* b) { set_big64(b, kL1, kCopied | uint64_t{1} << 40); }},
      {"refcount table",
       [](std::string* b) { set_big64(b, 48, uint64_t{1} << 40); }},
  };
  for (const Craft& c : cases) {
    SCOPED_TRACE(c.name);
    std::string bytes = good;
    c.change(&bytes);
    EXPECT_TRUE(absl::IsDataLoss(File(bytes).open(false).status()));
    File file(bytes);
    const auto reader = file.open(/*read_only=*/true);
    ASSERT_TRUE(reader.ok()) << reader.status();
    const bool maps_all = c.name == std::string("refcount table");
    EXPECT_TRUE(reads_as(**reader, {0, kCluster}, maps_all ? 1 : 0));
    EXPECT_TRUE(reads_as(**reader, {2 * kCluster, kCluster}, 0));
    const auto status =
        (*reader)->block_status({0, kMib}, BlockStatusScope::kThisLayer);
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(status->data, maps_all);
    EXPECT_TRUE((*reader)->close().ok());
    EXPECT_TRUE(file.content() == bytes);
  }
}

TEST(Qcow2Open, TwoL1EntriesMayNotShareATable) {
  std::string bytes = qemu_image_bytes(
      2048 * kMib, "", {"write -P 1 0 64k", "write -P 2 1G 64k"});
  set_big64(&bytes, kL1 + 16, get_big64(bytes, kL1));
  File file(bytes);
  EXPECT_TRUE(absl::IsDataLoss(file.open(false).status()));
  EXPECT_TRUE(file.content() == bytes);
}

TEST(Qcow2Open, AFailedReadOrWriteWhileOpeningIsReported) {
  std::string bytes = written_image();
  bytes[95] |= 4;  // an unknown autoclear bit
  for (Purpose purpose : {Purpose::kHeaderLoad, Purpose::kL1Load,
                          Purpose::kReftableLoad, Purpose::kHeaderUpdate}) {
    File file(bytes);
    file.driver->fail_at({.purpose = purpose}, EIO);
    EXPECT_FALSE(file.open(false).ok()) << purpose_name(purpose);
    EXPECT_TRUE(file.content() == bytes);
    EXPECT_TRUE(file.open(false).ok());
  }
}

TEST(Qcow2Open, ClearsUnknownAutoclearBitsOnlyForWriting) {
  std::string bytes = written_image();
  bytes[95] |= 4;
  File reader(bytes);
  ASSERT_TRUE(reader.open(true).ok());
  EXPECT_TRUE(reader.content() == bytes);
  File writer(bytes);
  ASSERT_TRUE(writer.open(false).ok());
  EXPECT_EQ(get_big64(writer.content(), 88), 0u);
}

TEST(Qcow2Open, ABackingFileNeedsPermission) {
  const std::string path = temporary_path("overlay");
  const std::string bytes =
      made_by({{"qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b",
                "/etc/passwd", "-F", "raw", path, "1M"}},
              path);
  File file(bytes);
  const auto opened = file.open(true);
  EXPECT_TRUE(absl::IsPermissionDenied(opened.status())) << opened.status();
  OpenOptions without;
  without.open_backing = false;
  const auto alone = open_qcow2(file.driver, without, {});
  ASSERT_TRUE(alone.ok());
  EXPECT_TRUE(reads_as(**alone, {0, 65536}, 0));
}

// ---- Damage that is found later ---------------------------------------------

struct BadEntry {
  const char* name;
  uint64_t entry;  // replaces the one of guest cluster 0
  const char* create_options;
};
constexpr BadEntry kBadEntries[] = {
    {"unaligned data", kCopied | (5 * kCluster + 512), ""},
    {"zero flag in version 2", kCopied | (5 * kCluster) | 1, "compat=0.10"},
    {"zero flag without a cluster in version 2", 1, "compat=0.10"},
};

TEST(Qcow2Damage, AWriterMarksTheImageAndAReaderLeavesItAlone) {
  for (const BadEntry& c : kBadEntries) {
    SCOPED_TRACE(c.name);
    std::string bytes = written_image(c.create_options);
    set_big64(&bytes, kL2, c.entry);
    const bool has_bit = std::string(c.create_options).empty();
    {
      File file(bytes);
      const auto reader = file.open(true);
      ASSERT_TRUE(reader.ok()) << reader.status();
      EXPECT_TRUE(absl::IsDataLoss(read_bytes(**reader, {0, 512}).status()));
      EXPECT_TRUE(reads_as(**reader, {kCluster, kCluster}, 2));
      ASSERT_TRUE((*reader)->close().ok());
      EXPECT_TRUE(file.content() == bytes);
    }
    const std::function<absl::Status(BlockDriver&)> finders[] = {
        [](BlockDriver& d) { return read_bytes(d, {0, 512}).status(); },
        [](BlockDriver& d) { return write_fill(d, {0, 512}, 7); },
        [](BlockDriver& d) { return d.discard({0, kCluster}); },
        [](BlockDriver& d) {
          return d.block_status({0, kCluster}, BlockStatusScope::kThisLayer)
              .status();
        }};
    for (const auto& find : finders) {
      File file(bytes);
      const auto driver = file.open(false);
      ASSERT_TRUE(driver.ok()) << driver.status();
      // A discard in version 2 looks at the entry too.
      EXPECT_TRUE(absl::IsDataLoss(find(**driver)));
      EXPECT_EQ(file.is_marked_corrupt(), has_bit);
      EXPECT_TRUE((*driver)->info().corrupt);
      // Writes are refused everywhere; reads elsewhere go on.
      EXPECT_TRUE(absl::IsDataLoss(write_fill(**driver, {kCluster, 512}, 7)));
      EXPECT_TRUE(absl::IsDataLoss((*driver)->discard({kCluster, kCluster})));
      EXPECT_TRUE(reads_as(**driver, {kCluster, kCluster}, 2));
      EXPECT_TRUE((*driver)->close().ok());
      std::string after = file.content();
      after[79] = bytes[79];
      EXPECT_TRUE(after == bytes);
    }
  }
}

TEST(Qcow2Damage, GuestDataMappedOntoMetadataIsNotWritten) {
  for (uint64_t target : {uint64_t{0}, kReftable, 2 * kCluster, kL1, kL2}) {
    if (target == 0) continue;  // offset 0 means "unallocated"
    std::string bytes = written_image();
    set_big64(&bytes, kL2, kCopied | target);
    File file(bytes);
    const auto driver = file.open(false);
    ASSERT_TRUE(driver.ok());
    EXPECT_TRUE(absl::IsDataLoss(write_fill(**driver, {0, 512}, 7)));
    EXPECT_TRUE(file.is_marked_corrupt());
    std::string after = file.content();
    after[79] = bytes[79];
    EXPECT_TRUE(after == bytes);
  }
}

TEST(Qcow2Damage, GuestDataMappedBeyondTheFileIsNotWritten) {
  std::string bytes = written_image();
  set_big64(&bytes, kL2, kCopied | uint64_t{1} << 40);
  File file(bytes);
  const auto driver = file.open(false);
  ASSERT_TRUE(driver.ok());
  EXPECT_TRUE(reads_as(**driver, {0, kCluster}, 0));
  EXPECT_TRUE(absl::IsDataLoss(write_fill(**driver, {0, 512}, 7)));
  EXPECT_TRUE(file.is_marked_corrupt());
  EXPECT_EQ(file.content().size(), bytes.size());
}

// What is there instead are zeroes, which are no compressed data.
TEST(Qcow2Damage, CompressedDataBeyondTheFileFailAlone) {
  std::string bytes = written_image();
  set_big64(&bytes, kL2, uint64_t{1} << 62 | uint64_t{1} << 50);
  for (const bool read_only : {false, true}) {
    File file(bytes);
    const auto driver = file.open(read_only);
    ASSERT_TRUE(driver.ok()) << driver.status();
    EXPECT_TRUE(absl::IsDataLoss(read_bytes(**driver, {0, 512}).status()));
    const auto status =
        (*driver)->block_status({0, kCluster}, BlockStatusScope::kThisLayer);
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_TRUE(status->compressed);
    EXPECT_TRUE(reads_as(**driver, {kCluster, kCluster}, 2));
    EXPECT_FALSE(file.is_marked_corrupt());
    if (read_only) continue;
    EXPECT_TRUE(write_fill(**driver, {kCluster, 512}, 7).ok());
    // Who replaces it would free what is not there.
    EXPECT_TRUE(absl::IsDataLoss(write_fill(**driver, {0, kCluster}, 7)));
    EXPECT_TRUE(file.is_marked_corrupt());
  }
}

TEST(Qcow2Damage, ADamagedCompressedClusterFailsAlone) {
  const std::string raw = temporary_path("raw");
  const std::string path = temporary_path("image");
  ASSERT_TRUE(
      testing::write_file(raw, std::vector<uint8_t>(4 * kCluster, 0x5a)).ok());
  std::string bytes = made_by(
      {{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path}},
      path);
  ::unlink(raw.c_str());
  const uint64_t l2 = get_big64(bytes, get_big64(bytes, 40)) & ~kCopied;
  const uint64_t entry = get_big64(bytes, l2);
  ASSERT_NE(entry & uint64_t{1} << 62, 0u);
  bytes[entry & ((uint64_t{1} << 54) - 1)] = '\xff';
  File file(bytes);
  const auto driver = file.open(false);
  ASSERT_TRUE(driver.ok());
  EXPECT_TRUE(absl::IsDataLoss(read_bytes(**driver, {0, 512}).status()));
  // Copy-on-write needs it too; a whole overwrite does not.
  EXPECT_TRUE(absl::IsDataLoss(write_fill(**driver, {0, 512}, 7)));
  EXPECT_TRUE(write_fill(**driver, {0, kCluster}, 7).ok());
  EXPECT_TRUE(reads_as(**driver, {0, kCluster}, 7));
  EXPECT_TRUE(reads_as(**driver, {kCluster, kCluster}, 0x5a));
  ASSERT_TRUE((*driver)->close().ok());
  EXPECT_TRUE(
      testing::check_image_bytes(file.content(), testing::Leaks::kForbidden)
          .ok());
}

// ---- Life cycle -------------------------------------------------------------

TEST(Qcow2Driver, SaysWhatItIs) {
  File file(written_image("cluster_size=64k,refcount_bits=8"));
  const auto driver = file.open(false);
  ASSERT_TRUE(driver.ok());
  EXPECT_EQ((*driver)->format_name(), "qcow2");
  EXPECT_EQ((*driver)->length_bytes(), 64 * kMib);
  EXPECT_FALSE((*driver)->read_only());
  EXPECT_EQ((*driver)->limits().discard_alignment_bytes, kCluster);
  EXPECT_TRUE((*driver)->capabilities().has(Capability::kDiscard));
  EXPECT_TRUE((*driver)->capabilities().has(Capability::kWriteZeroes));
  const ImageInfo info = (*driver)->info();
  EXPECT_EQ(info.virtual_size_bytes, 64 * kMib);
  EXPECT_EQ(info.cluster_size_bytes, kCluster);
  EXPECT_FALSE(info.corrupt);

  File old(written_image("compat=0.10"));
  const auto version2 = old.open(false);
  ASSERT_TRUE(version2.ok());
  // Without a backing file it forgets clusters, which says the same.
  EXPECT_TRUE((*version2)->capabilities().has(Capability::kWriteZeroes));
  const auto reader = old.open(true);
  ASSERT_TRUE(reader.ok());
  EXPECT_FALSE((*reader)->capabilities().has(Capability::kDiscard));
}

TEST(Qcow2Driver, ALengthThatIsNoMultipleOfASector) {
  File file(qemu_image_bytes(kMib, ""));
  std::string bytes = file.content();
  set_big64(&bytes, 24, kMib - 300);
  File odd(bytes);
  const auto driver = odd.open(false);
  ASSERT_TRUE(driver.ok());
  EXPECT_EQ((*driver)->length_bytes(), kMib - 300);
  ASSERT_TRUE(write_fill(**driver, {kMib - 1024, 1024}, 9).ok());
  const auto tail = read_bytes(**driver, {kMib - 1024, 1024});
  ASSERT_TRUE(tail.ok());
  EXPECT_EQ(*tail, std::string(724, 9) + std::string(300, '\0'));
  EXPECT_TRUE((*driver)->discard({0, kMib - 300}).ok());
  EXPECT_TRUE(reads_as(**driver, {0, kMib}, 0));
  ASSERT_TRUE((*driver)->close().ok());
}

}  // namespace
}  // namespace spindle::qcow2

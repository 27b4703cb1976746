#include "formats/qcow2/bitmap_directory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/support/memory_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryDriver;
using testing::run_tool_ok;

constexpr uint64_t kCluster = 4096;

// QEMU's, with two bitmaps: "first", where something is dirty, and "second".
const std::string& image() {
  static const std::string* const bytes = [] {
    const std::string path = testing::tmpfs_path("image");
    EXPECT_TRUE(run_tool_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                             "cluster_size=4k", path, "1M"})
                    .ok());
    for (const char* name : {"first", "second"}) {
      EXPECT_TRUE(
          run_tool_ok({"qemu-img", "bitmap", "--add", "-g", "512", path, name})
              .ok());
    }
    EXPECT_TRUE(testing::qemu_io({path, "qcow2"}, {"write 0 1k"}).ok());
    const auto read = testing::read_file(path);
    ::unlink(path.c_str());
    return new std::string(read->begin(), read->end());
  }();
  return *bytes;
}

struct Parsed {
  Header header;
  BitmapDirectory directory;
};

absl::StatusOr<Parsed> parse(const std::string& bytes) {
  const absl::StatusOr<Header> header = parse_header(
      {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()},
      bytes.size());
  if (!header.ok()) return header.status();
  const absl::StatusOr<BitmapDirectory> directory =
      find_bitmap_directory(*header);
  if (!directory.ok()) return directory.status();
  return Parsed{*header, *directory};
}

absl::StatusOr<std::vector<BitmapEntry>> entries_of(const std::string& bytes) {
  const absl::StatusOr<Parsed> parsed = parse(bytes);
  if (!parsed.ok()) return parsed.status();
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  ByteChannel channel(memory);
  return read_bitmap_directory(&channel, parsed->header, parsed->directory);
}

absl::Status open_for_writing(const std::string& bytes) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  const auto opened = open_qcow2(memory, {}, {});
  if (opened.ok()) return (*opened)->close();
  // Nothing was written.
  EXPECT_TRUE(memory->content() == bytes);
  return opened.status();
}

TEST(BitmapDirectory, IsReadAndWrittenAsQemuDoes) {
  const auto entries = entries_of(image());
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ(entries->at(0).name, "first");
  EXPECT_EQ(entries->at(0).granularity_bytes(), 512u);
  EXPECT_EQ(entries->at(0).flags, kBitmapAuto);
  EXPECT_EQ(entries->at(0).table_entry_count, 1u);
  EXPECT_EQ(entries->at(1).name, "second");
  const auto bytes = serialize_bitmap_directory(*entries);
  ASSERT_TRUE(bytes.ok());
  const auto parsed = parse(image());
  EXPECT_EQ(
      std::string(bytes->begin(), bytes->end()),
      image().substr(parsed->directory.offset, parsed->directory.length_bytes));
  EXPECT_EQ(serialize_bitmaps_extension(parsed->directory),
            parsed->header.find_extension(kExtensionBitmaps)->data);
}

TEST(BitmapDirectory, KnowsHowLongATableIs) {
  EXPECT_EQ(bitmap_table_entries_for(0, 16, 65536), 0u);
  EXPECT_EQ(bitmap_table_entries_for(1, 16, 65536), 1u);
  // A cluster of 512 bytes has the bits of 4096 granules.
  EXPECT_EQ(bitmap_table_entries_for(4096 * 512, 9, 512), 1u);
  EXPECT_EQ(bitmap_table_entries_for(4096 * 512 + 1, 9, 512), 2u);
}

// ---- Damage -----------------------------------------------------------------

struct Damage {
  const char* message;  // part of it
  // Changes the image; `entry` is where the first entry stands, `extension`
  // where the extension's data do.
  std::function<void(uint8_t* bytes, uint64_t entry, uint64_t extension)> apply;
};

std::vector<Damage> damages() {
  const auto field = [](size_t offset, auto store) {
    return [=](uint8_t* bytes, uint64_t entry, uint64_t) {
      store(bytes + entry + offset);
    };
  };
  const auto of_extension = [](size_t offset, auto store) {
    return [=](uint8_t* bytes, uint64_t, uint64_t extension) {
      store(bytes + extension + offset);
    };
  };
  const auto big64 = [](uint64_t value) {
    return [=](uint8_t* to) { store_big64(to, value); };
  };
  const auto big32 = [](uint32_t value) {
    return [=](uint8_t* to) { store_big32(to, value); };
  };
  const auto big16 = [](uint16_t value) {
    return [=](uint8_t* to) { store_big16(to, value); };
  };
  const auto byte = [](uint8_t value) {
    return [=](uint8_t* to) { *to = value; };
  };
  return {
      {"number of bitmaps is 0", of_extension(kBitmapsCountOffset, big32(0))},
      {"number of bitmaps is 65536",
       of_extension(kBitmapsCountOffset, big32(65536))},
      {"the directory ends after 2",
       of_extension(kBitmapsCountOffset, big32(3))},
      {"goes on for", of_extension(kBitmapsCountOffset, big32(1))},
      {"length is 67107841",
       of_extension(kBitmapsDirectorySizeOffset, big64(67107841))},
      {"end beyond the file's",
       of_extension(kBitmapsDirectorySizeOffset, big64(67107840))},
      {"offset is 4097",
       of_extension(kBitmapsDirectoryOffsetOffset, big64(4097))},
      {"end beyond the file's",
       of_extension(kBitmapsDirectoryOffsetOffset, big64(uint64_t{1} << 55))},
      {"offset is 18446744073709547520",
       of_extension(kBitmapsDirectoryOffsetOffset, big64(~uint64_t{4095}))},
      {"offset of the table is 0", field(kBitmapTableOffsetOffset, big64(0))},
      {"offset of the table is 512",
       field(kBitmapTableOffsetOffset, big64(512))},
      {"offset of the table is 9223372036854775808",
       field(kBitmapTableOffsetOffset, big64(uint64_t{1} << 63))},
      {"its table at 36028797018963968",
       field(kBitmapTableOffsetOffset, big64(uint64_t{1} << 55))},
      {"size of the table is 0", field(kBitmapTableSizeOffset, big32(0))},
      {"size of the table is 131073",
       field(kBitmapTableSizeOffset, big32(131073))},
      {"ends beyond the file's", field(kBitmapTableSizeOffset, big32(131072))},
      {"flags is 8", field(kBitmapFlagsOffset, big32(8))},
      {"type is 0", field(kBitmapTypeOffset, byte(0))},
      {"type is 2", field(kBitmapTypeOffset, byte(2))},
      {"granularity_bits is 8", field(kBitmapGranularityBitsOffset, byte(8))},
      {"granularity_bits is 32", field(kBitmapGranularityBitsOffset, byte(32))},
      {"length of the name is 0", field(kBitmapNameSizeOffset, big16(0))},
      {"length of the name is 1024", field(kBitmapNameSizeOffset, big16(1024))},
      {"length is", field(kBitmapNameSizeOffset, big16(1000))},
      {"length is 4294967328", field(kBitmapExtraSizeOffset, big32(~0u))},
      {"two bitmaps have the name 'first'",
       [](uint8_t* bytes, uint64_t entry, uint64_t) {
         uint8_t* const second = bytes + entry + 32;
         store_big16(second + kBitmapNameSizeOffset, 5);
         for (int i = 0; i < 5; ++i)
           second[kBitmapEntryBytes + static_cast<size_t>(i)] =
               static_cast<uint8_t>("first"[i]);
       }},
  };
}

TEST(BitmapDirectory, RefusesDamageByName) {
  const auto parsed = parse(image());
  ASSERT_TRUE(parsed.ok());
  const uint64_t extension =
      image().find(parsed->header.find_extension(kExtensionBitmaps)->data);
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.message);
    std::string bytes = image();
    damage.apply(reinterpret_cast<uint8_t*>(bytes.data()),
                 parsed->directory.offset, extension);
    const absl::Status status = open_for_writing(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), damage.message)) << status;
  }
}

// A check finds what qemu-img finds: that the directory cannot be walked.
TEST(BitmapDirectory, ACheckFailsWhereQemusDoes) {
  const auto parsed = parse(image());
  const uint64_t extension =
      image().find(parsed->header.find_extension(kExtensionBitmaps)->data);
  const std::string path = testing::tmpfs_path("damaged");
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.message);
    std::string bytes = image();
    damage.apply(reinterpret_cast<uint8_t*>(bytes.data()),
                 parsed->directory.offset, extension);
    ASSERT_TRUE(testing::write_file(
                    path, {reinterpret_cast<const uint8_t*>(bytes.data()),
                           bytes.size()})
                    .ok());
    const auto theirs =
        testing::run_tool({"qemu-img", "check", "-f", "qcow2", path});
    ASSERT_TRUE(theirs.ok());
    auto memory = std::make_shared<MemoryDriver>();
    memory->set_content(0, bytes);
    OpenOptions options;
    options.read_only = options.for_check = true;
    const auto opened = open_qcow2(memory, options, {});
    const auto ours = opened.ok() ? (*opened)->check({}) : opened.status();
    const bool sound = ours.ok() && ours->corruptions == 0 && ours->leaks == 0;
    EXPECT_EQ(sound, theirs->exit_code == 0) << ours.status() << "\n"
                                             << theirs->output;
  }
  ::unlink(path.c_str());
}

TEST(BitmapDirectory, RefusesADamagedTable) {
  const auto entries = entries_of(image());
  ASSERT_TRUE(entries.ok());
  const uint64_t table = entries->at(0).table_offset;
  const uint64_t host = load_big64(&image()[table]);
  ASSERT_NE(host, 0u);
  for (const uint64_t entry :
       {host | 1, host | 2, host | 0x100, host | (uint64_t{1} << 56),
        host + 512, uint64_t{1} << 55, uint64_t{1} << 63}) {
    SCOPED_TRACE(entry);
    std::string bytes = image();
    store_big64(&bytes[table], entry);
    const absl::Status status = open_for_writing(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(absl::StrContains(
        status.message(), absl::StrCat("bitmap 'first': entry 0 of its table")))
        << status;
  }
  // The header is metadata, too.
  for (const uint64_t entry : {kCluster, table}) {
    std::string bytes = image();
    store_big64(&bytes[table], entry);
    EXPECT_EQ(open_for_writing(bytes).code(), absl::StatusCode::kDataLoss);
  }
}

TEST(BitmapDirectory, AllOnesAreNotStored) {
  const auto entries = entries_of(image());
  const uint64_t table = entries->at(1).table_offset;
  std::string bytes = image();
  store_big64(&bytes[table], kBitmapTableAllOnes);
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  OpenOptions options;
  options.read_only = true;
  const auto opened = open_qcow2(memory, options, {});
  ASSERT_TRUE(opened.ok());
  const auto list = (*opened)->list_bitmaps();
  ASSERT_TRUE(list.ok());
  EXPECT_EQ(list->at(1).dirty_bytes, uint64_t{1} << 20);
}

// Tables that name the same clusters again and again would take memory that the
// file does not have.
TEST(BitmapDirectory, ATableNamesNoMoreClustersThanTheFileHas) {
  const auto entries = entries_of(image());
  const auto parsed = parse(image());
  const uint64_t host = load_big64(&image()[entries->at(0).table_offset]);
  std::string bytes = image();
  // The table moves to the end of the file and names one cluster 4096 times.
  const uint64_t table = (bytes.size() + kCluster - 1) / kCluster * kCluster;
  bytes.resize(table + 4096 * 8);
  for (uint64_t i = 0; i < 4096; ++i) store_big64(&bytes[table + i * 8], host);
  store_big64(&bytes[parsed->directory.offset + kBitmapTableOffsetOffset],
              table);
  store_big32(&bytes[parsed->directory.offset + kBitmapTableSizeOffset], 4096);
  const absl::Status status = open_for_writing(bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(status.message(), "more clusters than"))
      << status;
}

// ---- Extra data -------------------------------------------------------------

// The directory anew at the end of the file, its first bitmap with extra data.
std::string with_extra_data(uint32_t flags) {
  auto entries = *entries_of(image());
  const auto parsed = *parse(image());
  entries[0].extra_data = "of somebody else";
  entries[0].flags = flags;
  const auto serialized = *serialize_bitmap_directory(entries);
  std::string bytes = image();
  // Over the old one, which has a cluster to itself.
  bytes.resize(std::max(bytes.size(), parsed.directory.offset + kCluster));
  bytes.replace(parsed.directory.offset, serialized.size(),
                std::string(serialized.begin(), serialized.end()));
  BitmapDirectory directory = parsed.directory;
  directory.length_bytes = serialized.size();
  const std::string& old =
      parsed.header.find_extension(kExtensionBitmaps)->data;
  bytes.replace(bytes.find(old), old.size(),
                serialize_bitmaps_extension(directory));
  return bytes;
}

struct Reopened {
  std::vector<BitmapEntry> entries;
  bool inconsistent = false;
};

// Opens it, writes, adds a bitmap, and closes it.
Reopened after_a_session(const std::string& bytes) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, bytes);
  auto opened = open_qcow2(memory, {}, {});
  EXPECT_TRUE(opened.ok()) << opened.status();
  Reopened result;
  result.inconsistent = (*opened)->list_bitmaps()->at(0).inconsistent;
  EXPECT_TRUE((*opened)->add_bitmap({"third", 0, true}).ok());
  EXPECT_TRUE((*opened)->close().ok());
  result.entries = *entries_of(memory->content());
  return result;
}

TEST(BitmapDirectory, KeepsExtraDataOfUnknownMeaning) {
  const Reopened compatible = after_a_session(
      with_extra_data(kBitmapAuto | kBitmapExtraDataCompatible));
  EXPECT_FALSE(compatible.inconsistent);
  EXPECT_EQ(compatible.entries[0].extra_data, "of somebody else");
  EXPECT_EQ(compatible.entries[0].flags,
            kBitmapAuto | kBitmapExtraDataCompatible);
  EXPECT_EQ(compatible.entries.size(), 3u);
}

TEST(BitmapDirectory, ExtraDataMayForbidTheUse) {
  const Reopened forbidden = after_a_session(with_extra_data(kBitmapAuto));
  EXPECT_TRUE(forbidden.inconsistent);
  EXPECT_EQ(forbidden.entries[0].extra_data, "of somebody else");
  // It missed what was written.
  EXPECT_EQ(forbidden.entries[0].flags, kBitmapAuto | kBitmapInUse);
  EXPECT_EQ(forbidden.entries[1].flags, kBitmapAuto);
}

}  // namespace
}  // namespace spindle::qcow2

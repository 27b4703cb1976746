#include "formats/qcow2/snapshot_table.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/layout.h"
#include "tests/support/memory_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::MemoryDriver;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::temporary_path;
using Bytes = std::vector<uint8_t>;

constexpr uint64_t kDiskBytes = 12345;

Snapshot some_snapshot() {
  Snapshot snapshot;
  snapshot.l1_table_offset = 0x50000;
  snapshot.l1_entry_count = 7;
  snapshot.extra_bytes = kSnapshotExtraKnownBytes;
  snapshot.info.id = "17";
  snapshot.info.name = "before the upgrade";
  snapshot.info.vm_state_bytes = uint64_t{5} << 32;
  snapshot.info.date_seconds = 1700000000;
  snapshot.info.date_nanoseconds = 999;
  snapshot.info.vm_clock_nanoseconds = uint64_t{1} << 60;
  snapshot.info.instruction_count = 3;
  snapshot.info.disk_size_bytes = 1 << 20;
  return snapshot;
}

void expect_equal(const Snapshot& a, const Snapshot& b) {
  EXPECT_EQ(a.l1_table_offset, b.l1_table_offset);
  EXPECT_EQ(a.l1_entry_count, b.l1_entry_count);
  EXPECT_EQ(a.unknown_extra, b.unknown_extra);
  EXPECT_EQ(a.info.id, b.info.id);
  EXPECT_EQ(a.info.name, b.info.name);
  EXPECT_EQ(a.info.vm_state_bytes, b.info.vm_state_bytes);
  EXPECT_EQ(a.info.date_seconds, b.info.date_seconds);
  EXPECT_EQ(a.info.date_nanoseconds, b.info.date_nanoseconds);
  EXPECT_EQ(a.info.vm_clock_nanoseconds, b.info.vm_clock_nanoseconds);
  EXPECT_EQ(a.info.instruction_count, b.info.instruction_count);
  EXPECT_EQ(a.info.disk_size_bytes, b.info.disk_size_bytes);
}

// An entry without extra data, as version 2 images have.
Bytes short_entry(absl::string_view id, absl::string_view name) {
  Bytes bytes(kMinSnapshotEntryBytes);
  store_big64(&bytes[0], 0x30000);
  store_big32(&bytes[8], 2);
  store_big16(&bytes[12], static_cast<uint16_t>(id.size()));
  store_big16(&bytes[14], static_cast<uint16_t>(name.size()));
  store_big32(&bytes[32], 77);
  bytes.insert(bytes.end(), id.begin(), id.end());
  bytes.insert(bytes.end(), name.begin(), name.end());
  return bytes;
}

// A file with `table` at 64 KiB.
struct TableFile {
  TableFile(const Bytes& table, uint32_t count)
      : memory(std::make_shared<MemoryDriver>()), channel(memory) {
    header.snapshots_offset = 65536;
    header.snapshot_count = count;
    header.size_bytes = kDiskBytes;
    EXPECT_TRUE(channel
                    .write(Purpose::kHeaderUpdate, table.data(), table.size(),
                           header.snapshots_offset)
                    .ok());
  }
  const std::shared_ptr<MemoryDriver> memory;
  ByteChannel channel;
  Header header;
};

TEST(SnapshotTable, ComesBackAsItWasWritten) {
  Snapshot plain = some_snapshot();
  plain.info.id = "1";
  plain.info.name = "";
  plain.info.instruction_count.reset();
  Snapshot odd = some_snapshot();
  odd.unknown_extra = std::string("\0from later\xff", 13);
  odd.info.name = std::string(65535, 'n');
  const std::vector<Snapshot> wanted = {plain, odd, some_snapshot()};
  const auto bytes = serialize_snapshot_table(wanted);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  TableFile file(*bytes, 3);
  const auto read = read_snapshot_table(&file.channel, file.header);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->size(), wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i)
    expect_equal((*read)[i], wanted[i]);

  SnapshotTableReader reader(&file.channel, file.header);
  while (!reader.at_end()) ASSERT_TRUE(reader.next().ok());
  EXPECT_EQ(reader.length_bytes(), bytes->size());
}

TEST(SnapshotTable, KnowsShortEntries) {
  const auto snapshot = parse_snapshot(short_entry("a", "bc"), kDiskBytes);
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  EXPECT_EQ(snapshot->info.id, "a");
  EXPECT_EQ(snapshot->info.name, "bc");
  EXPECT_EQ(snapshot->info.vm_state_bytes, 77u);
  EXPECT_EQ(snapshot->info.disk_size_bytes, kDiskBytes);
  EXPECT_FALSE(snapshot->info.instruction_count.has_value());
  EXPECT_FALSE(snapshot->is_complete());
  EXPECT_EQ(snapshot_entry_bytes(short_entry("a", "bc")), 48u);
}

TEST(SnapshotTable, RefusesWhatBreaksALimit) {
  const Bytes good = *serialize_snapshot_table({some_snapshot()});
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_EQ(
        parse_snapshot(absl::MakeSpan(good).first(length), 0).status().code(),
        absl::StatusCode::kDataLoss)
        << length;
  }
  Bytes bytes = good;
  store_big32(&bytes[kSnapshotExtraSizeOffset], kMaxSnapshotExtraBytes + 1);
  bytes.resize(1 << 20);
  EXPECT_EQ(parse_snapshot(bytes, 0).status().code(),
            absl::StatusCode::kDataLoss);
  TableFile file(bytes, 1);
  const auto read = read_snapshot_table(&file.channel, file.header);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(read.status().message(), "1025"));
  store_big32(&bytes[kSnapshotExtraSizeOffset], UINT32_MAX);
  EXPECT_FALSE(parse_snapshot(bytes, 0).ok());
}

TEST(SnapshotTable, RefusesATableThatEndsBeyondTheFile) {
  const Bytes bytes = *serialize_snapshot_table({some_snapshot()});
  TableFile file(bytes, 2);
  EXPECT_EQ(read_snapshot_table(&file.channel, file.header).status().code(),
            absl::StatusCode::kDataLoss);
  file.header.snapshots_offset = ~uint64_t{0} - 20;
  EXPECT_FALSE(read_snapshot_table(&file.channel, file.header).ok());
  file.header.snapshots_offset = uint64_t{1} << 50;
  EXPECT_FALSE(read_snapshot_table(&file.channel, file.header).ok());
}

TEST(SnapshotTable, RefusesATableThatIsTooLong) {
  // Entries as long as they can be, again and again.
  Snapshot big = some_snapshot();
  big.info.name = std::string(65535, 'n');
  big.info.id = std::string(65535, 'i');
  std::vector<Snapshot> many(kMaxSnapshotTableBytes / 131072 + 2, big);
  EXPECT_EQ(serialize_snapshot_table(many).status().code(),
            absl::StatusCode::kResourceExhausted);
  big.unknown_extra.resize(kMaxSnapshotExtraBytes);
  EXPECT_FALSE(serialize_snapshot_table({big}).ok());
  big.unknown_extra.clear();
  big.info.id.push_back('i');
  EXPECT_FALSE(serialize_snapshot_table({big}).ok());

  many.resize(kMaxSnapshotTableBytes / 131136 - 1);
  const Bytes bytes = *serialize_snapshot_table(many);
  TableFile file(bytes, static_cast<uint32_t>(many.size()) + 1000);
  EXPECT_FALSE(read_snapshot_table(&file.channel, file.header).ok());
}

TEST(SnapshotTable, IsTheOneThatQemuWrites) {
  const std::string path = temporary_path("snapshots.qcow2");
  ASSERT_TRUE(
      run_tool_ok({"qemu-img", "create", "-q", "-f", "qcow2", path, "3M"})
          .ok());
  for (const char* name : {"first", "the second", "3"})
    ASSERT_TRUE(run_tool_ok({"qemu-img", "snapshot", "-c", name, path}).ok());
  std::stringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  const std::string text = content.str();
  const Bytes file_bytes(text.begin(), text.end());
  const auto header = parse_header(file_bytes, file_bytes.size());
  ASSERT_TRUE(header.ok()) << header.status();

  const auto memory = std::make_shared<MemoryDriver>();
  ByteChannel channel(memory);
  ASSERT_TRUE(channel
                  .write(Purpose::kHeaderUpdate, file_bytes.data(),
                         file_bytes.size(), 0)
                  .ok());
  const auto table = read_snapshot_table(&channel, *header);
  ASSERT_TRUE(table.ok()) << table.status();
  ASSERT_EQ(table->size(), 3u);
  EXPECT_EQ((*table)[1].info.name, "the second");
  EXPECT_EQ((*table)[1].info.id, "2");
  EXPECT_EQ((*table)[1].info.disk_size_bytes, 3u << 20);
  EXPECT_TRUE((*table)[1].is_complete());
  const Bytes ours = *serialize_snapshot_table(*table);
  EXPECT_EQ(
      0, std::memcmp(ours.data(), file_bytes.data() + header->snapshots_offset,
                     ours.size()));
}

}  // namespace
}  // namespace spindle::qcow2

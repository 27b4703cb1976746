// Damaged snapshot tables: what a check finds and what a repair makes of them,
// beside qemu-img.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"
#include "tests/formats/qcow2/check_report.h"
#include "tests/formats/qcow2/image_steps.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::check_with_ours;
using ::spindle::testing::check_with_qemu;
using ::spindle::testing::CheckReport;
using ::spindle::testing::content_by_qemu;
using ::spindle::testing::counts_of;
using ::spindle::testing::CutDisk;
using ::spindle::testing::fixes_of;
using ::spindle::testing::is_clean;
using ::spindle::testing::listed_by_qemu;
using ::spindle::testing::LoggingDriver;
using ::spindle::testing::MemoryDriver;
using ::spindle::testing::ObservingDriver;
using ::spindle::testing::read_file;
using ::spindle::testing::repair_with_ours;

using ::spindle::testing::run_tool_ok;
using ::spindle::testing::test_seed;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::write_file;

using Bytes = std::vector<uint8_t>;
constexpr uint64_t kClusterBytes = 4096;

// Three snapshots, made by QEMU; a fourth state is the disk.
Bytes with_snapshots(const std::string& options) {
  const std::string path = tmpfs_path("snapshots");
  const auto must = [](const std::vector<std::string>& command) {
    const auto run = run_tool_ok(command);
    EXPECT_TRUE(run.ok()) << run.status();
  };
  must({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
        absl::StrCat("cluster_size=4k,", options), path, "1M"});
  for (int i = 0; i < 3; ++i) {
    must({"qemu-io", "-f", "qcow2", "-c",
          absl::StrCat("write -P ", i + 1, " ", i * 8192, " 8k"), path});
    must({"qemu-img", "snapshot", "-c", absl::StrCat("snap", i), path});
  }
  must({"qemu-io", "-f", "qcow2", "-c", "write -P 99 0 12k", path});
  const auto bytes = read_file(path);
  EXPECT_TRUE(bytes.ok());
  ::unlink(path.c_str());
  return bytes.ok() ? *bytes : Bytes(kClusterBytes);
}

// An image whose table is harmed.
class Image {
 public:
  explicit Image(Bytes bytes) : bytes(std::move(bytes)) {
    uint64_t at = table();
    for (uint32_t i = 0; i < count(); ++i) {
      entries.push_back(at);
      at += snapshot_entry_bytes(absl::MakeConstSpan(bytes_of(at)));
    }
    end = at;
  }
  uint64_t table() const { return load_big64(&bytes[kSnapshotsOffsetOffset]); }
  uint32_t count() const { return load_big32(&bytes[kSnapshotCountOffset]); }
  void set32(uint64_t at, uint32_t value) { store_big32(&bytes[at], value); }
  void set64(uint64_t at, uint64_t value) { store_big64(&bytes[at], value); }
  void set_count(uint32_t value) { set32(kSnapshotCountOffset, value); }
  void set_table(uint64_t value) { set64(kSnapshotsOffsetOffset, value); }

  // `extra` more bytes of extra data in the last entry.
  void lengthen_last(uint64_t extra) {
    const uint64_t at = entries.back();
    const uint64_t old = load_big32(&bytes[at + kSnapshotExtraSizeOffset]);
    set32(at + kSnapshotExtraSizeOffset, static_cast<uint32_t>(old + extra));
    const auto where =
        bytes.begin() + static_cast<ptrdiff_t>(at + kSnapshotExtraOffset + old);
    bytes.insert(where, extra, uint8_t{'U'});
    // What came behind stays where it was.
    bytes.erase(
        bytes.begin() + static_cast<ptrdiff_t>(align_up(end, 8) + extra),
        bytes.begin() + static_cast<ptrdiff_t>(align_up(end, 8) + 2 * extra));
  }

  // A new table behind the end of the file: `number` entries with `extra` bytes
  // of extra data each beyond those that are known.
  void append_table(uint32_t number, uint32_t extra) {
    bytes.resize(align_up(bytes.size(), kClusterBytes));
    const uint64_t l1 = load_big64(&bytes[entries[0]]);
    set_table(bytes.size());
    set_count(number);
    for (uint32_t i = 0; i < number; ++i) {
      const std::string id = absl::StrCat(i + 1);
      Bytes entry(kSnapshotExtraOffset + kSnapshotExtraKnownBytes + extra);
      store_big64(&entry[0], i < 3 ? l1 : 0);
      store_big32(&entry[kSnapshotL1SizeOffset], i < 3 ? 1 : 0);
      store_big16(&entry[kSnapshotIdSizeOffset],
                  static_cast<uint16_t>(id.size()));
      store_big32(&entry[kSnapshotExtraSizeOffset],
                  kSnapshotExtraKnownBytes + extra);
      entry.insert(entry.end(), id.begin(), id.end());
      entry.resize(align_up(entry.size(), kSnapshotAlignment));
      bytes.insert(bytes.end(), entry.begin(), entry.end());
    }
  }

  Bytes bytes;
  std::vector<uint64_t> entries;
  uint64_t end = 0;

 private:
  Bytes bytes_of(uint64_t at) const {
    return Bytes(bytes.begin() + static_cast<ptrdiff_t>(at),
                 bytes.begin() + static_cast<ptrdiff_t>(at + 40));
  }
};

struct Damage {
  std::string name;
  std::function<void(Image*)> harm;
  // A repair makes everything good, in few steps: the image is then cut off and
  // refused at each.
  bool is_repaired = false;
  // What a repair does is beyond comparing: QEMU makes the file enormous, or
  // each changes the table that it reads.
  bool incomparable = false;
};

std::vector<Damage> damages() {
  return {
      {"nothing", [](Image*) {}},
      {"entry without extra data",
       [](Image* i) { i->set32(i->entries[1] + kSnapshotExtraSizeOffset, 0); },
       true},
      {"entry with some extra data",
       [](Image* i) { i->set32(i->entries[2] + kSnapshotExtraSizeOffset, 15); },
       true},
      {"too much extra data", [](Image* i) { i->lengthen_last(1100); }, true},
      {"too much extra data in two entries",
       [](Image* i) {
         i->set32(i->entries[0] + kSnapshotExtraSizeOffset, 1030);
         i->lengthen_last(2000);
       }},
      {"an endless entry",
       [](Image* i) {
         i->set32(i->entries[1] + kSnapshotExtraSizeOffset, UINT32_MAX);
       }},
      {"one snapshot more", [](Image* i) { i->set_count(4); }, true},
      {"one snapshot less", [](Image* i) { i->set_count(2); }},
      {"no snapshot", [](Image* i) { i->set_count(0); }},
      {"no snapshot, table unaligned",
       [](Image* i) {
         i->set_count(0);
         i->set_table(i->table() + 8);
       }},
      {"table unaligned", [](Image* i) { i->set_table(i->table() + 8); }},
      {"table far beyond every file",
       [](Image* i) { i->set_table(~uint64_t{0} << 12); }},
      {"table beyond the end",
       [](Image* i) { i->set_table(uint64_t{1} << 28); }, false, true},
      {"table is the header", [](Image* i) { i->set_table(0); }, false, true},
      {"table is an L2 table",
       [](Image* i) {
         const uint64_t l1 = load_big64(&i->bytes[kL1TableOffsetOffset]);
         i->set_table(load_big64(&i->bytes[l1]) & kL1OffsetMask);
       }},
      {"L1 table unaligned",
       [](Image* i) { i->bytes[i->entries[1] + 6] ^= 2; }},
      {"L1 table too large",
       [](Image* i) { i->set32(i->entries[1] + 8, 0x7fffffff); }},
      {"L1 table longer", [](Image* i) { i->set32(i->entries[1] + 8, 3); }},
      {"L1 table beyond the end",
       [](Image* i) { i->set64(i->entries[1], uint64_t{1} << 28); }},
      {"L1 table is the header", [](Image* i) { i->set64(i->entries[1], 0); }},
      {"L1 table too large, entry incomplete",
       [](Image* i) {
         i->set32(i->entries[0] + 8, 0x7fffffff);
         i->set32(i->entries[1] + kSnapshotExtraSizeOffset, 0);
       }},
      {"entry incomplete, and refcounts to be rebuilt",
       [](Image* i) {
         i->set32(i->entries[2] + kSnapshotExtraSizeOffset, 8);
         i->bytes[load_big64(&i->bytes[kRefcountTableOffsetOffset]) + 7] ^= 1;
       },
       true},
      {"entry incomplete, dirty and corrupt",
       [](Image* i) {
         i->set32(i->entries[2] + kSnapshotExtraSizeOffset, 8);
         if (i->bytes[7] == 3) i->set64(kIncompatibleFeaturesOffset, 3);
       },
       true},
  };
}

std::shared_ptr<MemoryDriver> in_memory(const Bytes& bytes) {
  auto file = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = bytes.size()});
  file->set_content(
      0, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  return file;
}

absl::Status save(const std::string& content, const std::string& path) {
  return write_file(
      path, {reinterpret_cast<const uint8_t*>(content.data()), content.size()});
}

// The snapshots of an image as far as they can be read: all that an entry has.
std::string table_of(const std::shared_ptr<BlockDriver>& file) {
  ByteChannel channel(file);
  const auto header = read_header_for_check(&channel);
  if (!header.ok()) return std::string(header.status().message());
  std::string text;
  SnapshotTableReader reader(&channel, *header);
  while (!reader.at_end()) {
    const auto snapshot = reader.next();
    if (!snapshot.ok()) return absl::StrCat(text, snapshot.status().message());
    const SnapshotInfo& info = snapshot->info;
    absl::StrAppend(&text, snapshot->l1_table_offset, " ",
                    snapshot->l1_entry_count, " ", snapshot->extra_bytes, " ",
                    info.disk_size_bytes, " ", info.vm_state_bytes, " ",
                    info.date_seconds, " ", info.vm_clock_nanoseconds, " ",
                    snapshot->unknown_extra, " ", info.id, " ", info.name,
                    "\n");
  }
  return text;
}

std::string table_of_file(const std::string& path) {
  const auto bytes = read_file(path);
  return bytes.ok() ? table_of(in_memory(*bytes)) : "unreadable";
}

// What a file is to QEMU, and to us.
struct Look {
  explicit Look(const Bytes& bytes, const std::string& path) {
    EXPECT_TRUE(write_file(path, bytes).ok());
    check = check_with_qemu(path);
    table = table_of(in_memory(bytes));
    listed = listed_by_qemu(path);
    content = content_by_qemu(path);
    // The message names a temporary file.
    if (absl::StartsWith(content, "INTERNAL")) content = "unreadable";
  }
  CheckReport check;
  std::string table;
  std::string listed;
  std::string content;
};

void compare_repairs(const Bytes& bytes, const std::string& repair,
                     const Damage& damage) {
  SCOPED_TRACE(absl::StrCat("-r ", repair));
  const std::string path = tmpfs_path("repaired");
  ASSERT_TRUE(write_file(path, bytes).ok());
  const CheckReport theirs = check_with_qemu(path, repair);
  const auto file = in_memory(bytes);
  const CheckReport ours = repair_with_ours(file, repair);
  const std::string said =
      absl::StrCat("ours:\n", absl::StrJoin(ours.lines, "\n"), "\ntheirs:\n",
                   absl::StrJoin(theirs.lines, "\n"));
  const bool qemu_fails =
      theirs.failed || (repair == "all" && damage.incomparable);
  std::optional<Look> their_look;
  if (!qemu_fails) their_look.emplace(*read_file(path), path);
  const std::string content = file->content();
  const Look look(Bytes(content.begin(), content.end()), path);
  ::unlink(path.c_str());
  // QEMU is the judge of what we leave.
  EXPECT_EQ(is_clean(look.check), is_clean(ours))
      << said << absl::StrJoin(look.check.lines, "\n");
  if (damage.is_repaired && repair == "all") {
    EXPECT_TRUE(is_clean(ours)) << said;
  }
  if (qemu_fails) return;
  EXPECT_EQ(fixes_of(ours), fixes_of(theirs)) << said;
  EXPECT_EQ(is_clean(ours), is_clean(theirs)) << said;
  EXPECT_EQ(ours.result.corruptions, theirs.result.corruptions) << said;
  EXPECT_EQ(look.table, their_look->table);
  EXPECT_EQ(look.listed, their_look->listed);
  EXPECT_EQ(look.content, their_look->content);
}

TEST(SnapshotTableRepair, IsQemus) {
  for (const char* options :
       {"compat=1.1", "compat=0.10", "compat=1.1,refcount_bits=64"}) {
    const Bytes sound = with_snapshots(options);
    for (const Damage& damage : damages()) {
      SCOPED_TRACE(absl::StrCat(options, ", ", damage.name));
      Image image(sound);
      damage.harm(&image);
      const std::string path = tmpfs_path("damaged");
      ASSERT_TRUE(write_file(path, image.bytes).ok());
      const CheckReport theirs = check_with_qemu(path);
      const CheckReport ours =
          check_with_ours(in_memory(image.bytes), CheckOptions());
      EXPECT_EQ(counts_of(ours), counts_of(theirs));
      if (!theirs.failed) {
        EXPECT_EQ(ours.lines, theirs.lines);
      }
      ::unlink(path.c_str());
      compare_repairs(image.bytes, "leaks", damage);
      compare_repairs(image.bytes, "all", damage);
    }
  }
}

// Tables of the largest size there may be, and above.
TEST(SnapshotTableRepair, DropsWhatIsBeyondTheLimits) {
  const Bytes sound = with_snapshots("compat=1.1");
  struct Case {
    uint32_t count;
    uint32_t extra;
    uint32_t kept;
  };
  std::vector<Case> cases = {{kMaxSnapshotCount + 4, 0, kMaxSnapshotCount}};
  if (std::getenv("SPINDLE_LONG") != nullptr) {
    cases.push_back({kMaxSnapshotCount, 0, kMaxSnapshotCount});
    // Each has 64 + 976 + up to 5 bytes, aligned.
    cases.push_back({kMaxSnapshotCount, 976, 0});
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.count, " snapshots, ", c.extra, " extra"));
    Image image(sound);
    image.append_table(c.count, c.extra);
    const std::string path = tmpfs_path("large");
    ASSERT_TRUE(write_file(path, image.bytes).ok());
    const auto file = in_memory(image.bytes);
    EXPECT_EQ(counts_of(check_with_ours(file, {})),
              counts_of(check_with_qemu(path)));
    const CheckReport theirs = check_with_qemu(path, "all");
    const CheckReport ours = repair_with_ours(file, "all");
    EXPECT_TRUE(is_clean(theirs));
    EXPECT_TRUE(is_clean(ours)) << counts_of(ours);
    EXPECT_EQ(fixes_of(ours), fixes_of(theirs));
    EXPECT_TRUE(table_of(file) == table_of_file(path));
    const std::string content = file->content();
    const uint32_t left = load_big32(content.data() + kSnapshotCountOffset);
    if (c.kept != 0) {
      EXPECT_EQ(left, c.kept);
    }
    EXPECT_LE(left, kMaxSnapshotCount);
    ASSERT_TRUE(save(content, path).ok());
    EXPECT_TRUE(is_clean(check_with_qemu(path)));
    ::unlink(path.c_str());
  }
}

// No cluster is free that has a refcount block.
TEST(SnapshotTableRepair, MakesRoomWhereTheRefcountsHaveNone) {
  // 512-byte clusters: a block of 64-bit refcounts has 64.
  const std::string path = tmpfs_path("full");
  ASSERT_TRUE(run_tool_ok({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                           "cluster_size=512,refcount_bits=64", path, "64k"})
                  .ok());
  ASSERT_TRUE(run_tool_ok({"qemu-img", "snapshot", "-c", "one", path}).ok());
  // Until the last cluster of a block is in use.
  Bytes bytes;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(run_tool_ok({"qemu-io", "-f", "qcow2", "-c",
                             absl::StrCat("write ", i * 512, " 512"), path})
                    .ok());
    bytes = *read_file(path);
    if (bytes.size() / 512 % 64 == 0) break;
  }
  ASSERT_EQ(bytes.size() / 512 % 64, 0u);
  Image image(bytes);
  // Its clusters then are more than one, which are not free.
  image.set32(image.entries[0] + kSnapshotExtraSizeOffset, 8);
  const auto file = in_memory(image.bytes);
  ASSERT_TRUE(is_clean(repair_with_ours(file, "all")));
  ASSERT_TRUE(save(file->content(), path).ok());
  EXPECT_TRUE(is_clean(check_with_qemu(path)));
  ASSERT_TRUE(write_file(path, image.bytes).ok());
  ASSERT_TRUE(is_clean(check_with_qemu(path, "all")));
  EXPECT_EQ(table_of(file), table_of_file(path));
  ::unlink(path.c_str());
}

// ---- Crashes and errors -----------------------------------------------------

TEST(SnapshotTableRepair, SurvivesAPowerCut) {
  const Bytes sound = with_snapshots("compat=1.1");
  std::mt19937_64 random(test_seed());
  for (const Damage& damage : damages()) {
    if (!damage.is_repaired) continue;
    Image image(sound);
    damage.harm(&image);
    const std::string bytes(image.bytes.begin(), image.bytes.end());
    auto file =
        std::make_shared<LoggingDriver>(bytes, [](int) { return true; });
    const CheckReport whole = repair_with_ours(file, "all");
    ASSERT_TRUE(is_clean(whole)) << damage.name << counts_of(whole);
    const std::string wanted = table_of(file);
    const auto log = file->entries();
    CutDisk disk(bytes, log);
    for (size_t moment = 0; moment <= log.size(); ++moment) {
      SCOPED_TRACE(absl::StrCat(damage.name, ", cut at ", moment));
      const std::string cut = disk.cut(moment, &random);
      const auto again = in_memory(Bytes(cut.begin(), cut.end()));
      EXPECT_TRUE(is_clean(repair_with_ours(again, "all")));
      EXPECT_EQ(table_of(again), wanted);
    }
  }
}

TEST(SnapshotTableRepair, SurvivesAnErrorOfEachAccess) {
  const Bytes sound = with_snapshots("compat=1.1");
  for (const Damage& damage : damages()) {
    if (!damage.is_repaired) continue;
    Image image(sound);
    damage.harm(&image);
    const auto whole = in_memory(image.bytes);
    ASSERT_TRUE(is_clean(repair_with_ours(whole, "all")));
    const std::string wanted = table_of(whole);
    for (const AccessKind kind :
         {AccessKind::kRead, AccessKind::kWrite, AccessKind::kFlush}) {
      for (int nth = 1;; ++nth) {
        SCOPED_TRACE(absl::StrCat(damage.name, ", access ",
                                  static_cast<int>(kind), " ", nth));
        const auto memory = in_memory(image.bytes);
        const auto file = std::make_shared<ObservingDriver>(memory);
        file->fail_at({.kind = kind}, EIO, nth);
        const CheckReport report = repair_with_ours(file, "all");
        if (file->failure_count() == 0) {
          EXPECT_TRUE(is_clean(report));
          break;
        }
        const CheckReport again = repair_with_ours(memory, "all");
        EXPECT_TRUE(is_clean(again)) << counts_of(again);
        EXPECT_EQ(table_of(memory), wanted);
      }
    }
  }
}

}  // namespace
}  // namespace spindle::qcow2

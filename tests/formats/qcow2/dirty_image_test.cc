// Damaged images that are marked dirty: QEMU repairs them when it opens them
// for writing, and goes on where damage is left.  What it opens, we open.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "formats/qcow2/layout.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::read_file;
using ::spindle::testing::reads_as;
using ::spindle::testing::run_tool;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::tmpfs_path;
using ::spindle::testing::write_file;
using ::spindle::testing::write_fill;
using Bytes = std::vector<uint8_t>;

// Where no damage reaches.
constexpr uint64_t kFarOffset = 960 * 1024;

struct Image {
  explicit Image(Bytes content)
      : bytes(std::move(content)),
        l1(get(kL1TableOffsetOffset)),
        l2(get(l1) & kL1OffsetMask),
        refcount_table(get(kRefcountTableOffsetOffset)),
        block(get(refcount_table)),
        snapshots(get(kSnapshotsOffsetOffset)) {}
  uint64_t get(uint64_t at) const { return load_big64(&bytes[at]); }
  void set(uint64_t at, uint64_t value) { store_big64(&bytes[at], value); }
  void flip(uint64_t at, uint64_t bits) { set(at, get(at) ^ bits); }
  void set32(uint64_t at, uint32_t value) { store_big32(&bytes[at], value); }

  Bytes bytes;
  uint64_t l1, l2, refcount_table, block, snapshots;
};

Bytes sound_image() {
  const std::string path = tmpfs_path("sound");
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"qemu-img", "create", "-q", "-f", "qcow2",
                                 "-o", "cluster_size=4k", path, "1M"},
        {"qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", "-c",
         "write -P 2 512k 256k", "-c", "write -z 64k 16k", path},
        {"qemu-img", "snapshot", "-c", "kept", path},
        {"qemu-io", "-f", "qcow2", "-c", "write -P 5 0 8k", path}}) {
    const auto run = run_tool_ok(command);
    EXPECT_TRUE(run.ok()) << run.status();
  }
  const auto bytes = read_file(path);
  ::unlink(path.c_str());
  return bytes.ok() ? *bytes : Bytes(4096);
}

enum class Expected {
  kAsQemu,
  // Writing would change what tables rely on: refused before anything is
  // written.  QEMU opens these, and finds out when it has freed or overwritten
  // something (or stops at an assertion of its own).
  kRefused,
  // QEMU's repair stops at what it writes itself; ours does not.
  kOpened,
};

struct Damage {
  const char* name;
  std::function<void(Image*)> harm;
  Expected expected = Expected::kAsQemu;
};

std::vector<Damage> damages() {
  constexpr uint64_t kCopied = kEntryCopied;
  return {
      {"none", [](Image*) {}},
      {"data unaligned", [](Image* i) { i->flip(i->l2, 512); }},
      {"data beyond the end",
       [](Image* i) { i->set(i->l2 + 8, kCopied | 1 << 30); }},
      {"reserved bit of an L2 entry", [](Image* i) { i->flip(i->l2 + 16, 2); }},
      {"reserved bit of an L1 entry", [](Image* i) { i->flip(i->l1, 1); }},
      {"data in a refcount block",
       [](Image* i) { i->set(i->l2, kCopied | i->block); }},
      {"data in the L1 table",
       [](Image* i) { i->set(i->l2, kCopied | i->l1); }},
      {"data named twice", [](Image* i) { i->set(i->l2, i->get(i->l2 + 8)); }},
      {"compressed and COPIED",
       [](Image* i) { i->flip(i->l2, kL2Compressed); }},
      {"refcounts gone",
       [](Image* i) {
         for (uint64_t at = 0; at < 4096; at += 8) i->set(i->block + at, 0);
       }},
      {"cut off", [](Image* i) { i->bytes.resize(i->bytes.size() - 8192); }},
      {"snapshot's L1 table unaligned",
       [](Image* i) { i->flip(i->snapshots, 512); }},
      {"snapshot's L1 table beyond the end",
       [](Image* i) { i->set(i->snapshots, 1 << 30); }},
      {"snapshot with too much extra data",
       [](Image* i) {
         i->set32(i->snapshots + kSnapshotExtraSizeOffset, 2000);
       }},
      {"snapshot incomplete",
       [](Image* i) { i->set32(i->snapshots + kSnapshotExtraSizeOffset, 0); }},
      {"too many snapshots",
       [](Image* i) { i->set32(kSnapshotCountOffset, 70000); }},
      {"corrupt, too",
       [](Image* i) {
         i->set(kIncompatibleFeaturesOffset, kIncompatibleCorrupt);
       }},
      {"L2 table unaligned", [](Image* i) { i->flip(i->l1, 512); },
       Expected::kRefused},
      {"L2 table beyond the end",
       [](Image* i) { i->set(i->l1, kCopied | 1 << 30); }, Expected::kRefused},
      {"L2 table in the header", [](Image* i) { i->set(i->l1, kCopied); }},
      {"L2 table in a refcount block",
       [](Image* i) { i->set(i->l1, kCopied | i->block); }},
      {"snapshot's L1 table too large",
       [](Image* i) { i->set32(i->snapshots + 8, 0x7fffffff); },
       Expected::kOpened},
      {"refcount table entry unaligned",
       [](Image* i) { i->flip(i->refcount_table, 512); }, Expected::kOpened},
      {"reserved bit of the refcount table",
       [](Image* i) { i->flip(i->refcount_table, 1); }, Expected::kOpened},
  };
}

bool qemu_opens(const std::string& path) {
  // Where it opens the image, it writes or says that the write failed.
  const auto run =
      run_tool({"qemu-io", "-f", "qcow2", "-c",
                absl::StrCat("write -P 7 ", kFarOffset, " 4k"), path});
  EXPECT_TRUE(run.ok()) << run.status();
  return run.ok() && !absl::StrContains(run->output, "can't open");
}

// Opens the image, writes where nothing is damaged, closes it.
absl::Status use_ours(const std::string& path) {
  const auto driver =
      ImageOpener(builtin_drivers(), {}).open(path, "qcow2", {});
  if (!driver.ok()) return driver.status();
  EXPECT_FALSE((*driver)->info().dirty);
  const absl::Status status = write_fill(**driver, {kFarOffset, 4096}, 7);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(reads_as(**driver, {kFarOffset, 4096}, 7));
  const absl::Status closed = (*driver)->close();
  EXPECT_TRUE(closed.ok()) << closed;
  return absl::OkStatus();
}

TEST(DirtyImage, IsOpenedWhereQemuOpensIt) {
  const Bytes sound = sound_image();
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.name);
    Image image(sound);
    damage.harm(&image);
    image.set(kIncompatibleFeaturesOffset,
              image.get(kIncompatibleFeaturesOffset) | kIncompatibleDirty);
    const std::string path = tmpfs_path("dirty");
    ASSERT_TRUE(write_file(path, image.bytes).ok());
    bool wanted = qemu_opens(path);
    if (damage.expected == Expected::kRefused) wanted = false;
    if (damage.expected == Expected::kOpened) {
      EXPECT_FALSE(wanted) << "QEMU can do it, too";
      wanted = true;
    }
    ::unlink(path.c_str());
    ASSERT_TRUE(write_file(path, image.bytes).ok());
    const absl::Status ours = use_ours(path);
    EXPECT_EQ(ours.ok(), wanted) << ours;
    ::unlink(path.c_str());
  }
}

}  // namespace
}  // namespace spindle::qcow2

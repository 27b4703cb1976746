// Persistent bitmaps beside QEMU: one history on two images, one by each; each
// reads what the other wrote.
#include "formats/qcow2/bitmaps.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/support/qemu_bitmaps.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::ImageFile;
using testing::qemu_bitmap_list;
using testing::qemu_check;
using testing::qemu_dirty_ranges;
using testing::qemu_io;
using testing::run_tool_ok;
using testing::tmpfs_path;

constexpr uint64_t kMib = uint64_t{1} << 20;

absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const std::string& path, bool read_only = false) {
  const ImageOpener opener(builtin_drivers(), {});
  OpenOptions options;
  options.read_only = read_only;
  if (!read_only) options.driver_options = {{"reuse", "lowest"}};
  return opener.open(path, "qcow2", options);
}

std::string to_text(const std::vector<ByteRange>& ranges) {
  std::string text;
  for (const ByteRange& range : ranges)
    absl::StrAppend(&text, range.offset, "+", range.length, " ");
  return text;
}

std::string dirty_text(const DirtyBitmap& bitmap) {
  std::vector<ByteRange> ranges;
  for (uint64_t at = 0; at < bitmap.length_bytes();) {
    const DirtyBitmap::Run run = bitmap.run_at(at);
    if (run.dirty) ranges.push_back(run.range);
    at = run.range.end();
  }
  return to_text(ranges);
}

// As to_text(): what a bitmap holds, as QEMU reads it and as we do.
std::string dirty_by_qemu(const std::string& path, const std::string& name) {
  const auto ranges = qemu_dirty_ranges(path, name);
  return ranges.ok() ? to_text(*ranges) : ranges.status().ToString();
}

std::string dirty_by_us(const std::string& path, const std::string& name) {
  const auto image = open_image(path, /*read_only=*/true);
  if (!image.ok()) return image.status().ToString();
  const auto bitmap = (*image)->find_bitmap(name);
  return bitmap.ok() ? dirty_text(**bitmap) : bitmap.status().ToString();
}

std::string listed_by_qemu(const std::string& path) {
  const auto list = qemu_bitmap_list(path);
  return list.ok() ? *list : list.status().ToString();
}

std::string listed_by_us(const std::string& path) {
  const auto image = open_image(path, /*read_only=*/true);
  if (!image.ok()) return image.status().ToString();
  const auto list = (*image)->list_bitmaps();
  if (!list.ok()) return list.status().ToString();
  std::string text;
  for (const DirtyBitmapInfo& info : *list) {
    absl::StrAppend(&text, info.name, " ", info.granularity_bytes, " ",
                    info.inconsistent ? "in-use," : "",
                    info.enabled ? "auto," : "", "\n");
  }
  return text;
}

// A file that goes when the test ends.
struct TemporaryImage {
  TemporaryImage(const std::string& options, uint64_t size_bytes) {
    EXPECT_TRUE(testing::qemu_create({.image = file,
                                      .size_bytes = size_bytes,
                                      .options = options,
                                      .backing = {}})
                    .ok());
  }
  ~TemporaryImage() { ::unlink(file.path.c_str()); }
  const ImageFile file{tmpfs_path("image"), "qcow2"};
};

absl::Status write_at(BlockDriver& driver, ByteRange range, uint8_t fill,
                      bool compressed = false) {
  std::vector<uint8_t> bytes(range.length, fill);
  const IoVector qiov(bytes.data(), bytes.size());
  const Sector sector = Sector::from_byte_offset(range.offset);
  return compressed ? driver.write_compressed(qiov, sector)
                    : driver.write(qiov, sector);
}

// ---- Histories --------------------------------------------------------------

struct Step {
  enum class Kind {
    kWrite,
    kCompressed,
    kZero,
    kDiscard,
    kAdd,
    kRemove,
    kClear,
    kEnable,
    kDisable,
    kMerge
  };
  Kind kind;
  ByteRange range = {};
  uint8_t fill = 0;
  std::string name = {};
  std::string source = {};
  uint64_t granularity = 0;

  bool writes() const { return kind <= Kind::kDiscard; }
  std::string text() const {
    static constexpr const char* kNames[] = {
        "write",  "write -c", "write -z", "discard", "add",
        "remove", "clear",    "enable",   "disable", "merge"};
    return absl::StrCat(kNames[static_cast<int>(kind)], " ", range.offset, " ",
                        range.length, " ", name, " ", source, " ", granularity);
  }
};

absl::Status step_by_us(BlockDriver& driver, const Step& step) {
  switch (step.kind) {
    case Step::Kind::kWrite:
    case Step::Kind::kCompressed:
      return write_at(driver, step.range, step.fill,
                      step.kind == Step::Kind::kCompressed);
    case Step::Kind::kZero:
      return driver.write_zeroes(step.range, {});
    case Step::Kind::kDiscard:
      return driver.discard(step.range);
    case Step::Kind::kAdd:
      return driver.add_bitmap({step.name, step.granularity, true});
    case Step::Kind::kRemove:
      return driver.remove_bitmap(step.name);
    case Step::Kind::kClear:
      return driver.clear_bitmap(step.name);
    case Step::Kind::kEnable:
    case Step::Kind::kDisable:
      return driver.enable_bitmap(step.name, step.kind == Step::Kind::kEnable);
    case Step::Kind::kMerge: {
      const auto source = driver.find_bitmap(step.source);
      if (!source.ok()) return source.status();
      return driver.merge_bitmap(step.name, **source);
    }
  }
  return absl::InternalError("no such step");
}

absl::Status step_by_qemu(const std::string& path, const Step& step) {
  const std::string range =
      absl::StrCat(step.range.offset, " ", step.range.length);
  const auto io = [&](const std::string& command) {
    return qemu_io({path, "qcow2"}, {absl::StrCat(command, " ", range)});
  };
  const auto bitmap = [&](std::vector<std::string> options) {
    std::vector<std::string> command = {"qemu-img", "bitmap"};
    command.insert(command.end(), options.begin(), options.end());
    command.insert(command.end(), {"-f", "qcow2", path, step.name});
    return run_tool_ok(command).status();
  };
  switch (step.kind) {
    case Step::Kind::kWrite:
      return io(absl::StrCat("write -P ", step.fill));
    case Step::Kind::kCompressed:
      // QEMU compresses only where nothing was written before.
      if (io(absl::StrCat("write -c -P ", step.fill)).ok())
        return absl::OkStatus();
      return io(absl::StrCat("write -P ", step.fill));
    case Step::Kind::kZero:
      return io("write -z");
    case Step::Kind::kDiscard:
      return io("discard");
    case Step::Kind::kAdd:
      if (step.granularity == 0) return bitmap({"--add"});
      return bitmap({"--add", "-g", absl::StrCat(step.granularity)});
    case Step::Kind::kRemove:
      return bitmap({"--remove"});
    case Step::Kind::kClear:
      return bitmap({"--clear"});
    case Step::Kind::kEnable:
      return bitmap({"--enable"});
    case Step::Kind::kDisable:
      return bitmap({"--disable"});
    case Step::Kind::kMerge:
      return bitmap({"--merge", step.source});
  }
  return absl::InternalError("no such step");
}

struct Variant {
  const char* options;
  uint64_t size_bytes;
  uint32_t cluster_bytes;
};

class History {
 public:
  History(const Variant& variant, uint64_t seed)
      : variant_(variant), random_(seed) {}

  Step next() {
    const uint64_t dice = random_() % 24;
    if (dice < 3 && names_.size() < 5) return add();
    if (dice >= 8 || names_.empty()) return write();
    Step step{Step::Kind::kRemove};
    step.name = any_name();
    if (dice == 3) {
      std::erase(names_, step.name);
    } else if (dice == 4) {
      step.kind = Step::Kind::kClear;
    } else if (dice < 7) {
      step.kind = dice == 5 ? Step::Kind::kDisable : Step::Kind::kEnable;
    } else {
      step.kind = Step::Kind::kMerge;
      step.source = any_name();
    }
    return step;
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  Step add() {
    Step step{Step::Kind::kAdd};
    step.name = absl::StrCat("b", ++made_);
    if (random_() % 3 != 0) step.granularity = uint64_t{512} << random_() % 12;
    names_.push_back(step.name);
    return step;
  }
  Step write() {
    Step step{Step::Kind::kWrite};
    step.fill = static_cast<uint8_t>(random_() % 255 + 1);
    const uint64_t dice = random_() % 10;
    const uint64_t unit = dice < 7 ? 512 : variant_.cluster_bytes;
    const uint64_t units = variant_.size_bytes / unit;
    const uint64_t first = random_() % units;
    const uint64_t count = std::min(
        units - first, random_() % (4 * variant_.cluster_bytes / unit + 1) + 1);
    step.range = {first * unit, count * unit};
    if (dice == 7) step.kind = Step::Kind::kZero;
    if (dice == 8) step.kind = Step::Kind::kDiscard;
    if (dice == 9) {
      step.kind = Step::Kind::kCompressed;
      step.range.length = unit;
    }
    return step;
  }
  const std::string& any_name() { return names_[random_() % names_.size()]; }

  const Variant variant_;
  std::mt19937_64 random_;
  std::vector<std::string> names_;
  int made_ = 0;
};

class BitmapHistories : public ::testing::TestWithParam<Variant> {};

TEST_P(BitmapHistories, AreQemus) {
  const uint64_t seed = testing::test_seed();
  const Variant& variant = GetParam();
  const TemporaryImage ours(variant.options, variant.size_bytes);
  const TemporaryImage theirs(variant.options, variant.size_bytes);
  History history(variant, seed);
  for (int session = 0; session < 14 && !HasFailure(); ++session) {
    std::string text = absl::StrCat("session ", session, ", seed ", seed, ":");
    auto opened = open_image(ours.file.path);
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (int i = 0; i < 6; ++i) {
      const Step step = history.next();
      absl::StrAppend(&text, " ", step.text(), ";");
      const absl::Status by_us = step_by_us(**opened, step);
      EXPECT_TRUE(by_us.ok()) << by_us << text;
      const absl::Status by_qemu = step_by_qemu(theirs.file.path, step);
      EXPECT_TRUE(by_qemu.ok()) << by_qemu << text;
    }
    SCOPED_TRACE(text);
    const absl::Status closed = (*opened)->close();
    EXPECT_TRUE(closed.ok()) << closed;
    opened->reset();
    const absl::Status clean = qemu_check(ours.file);
    EXPECT_TRUE(clean.ok()) << clean;
    const std::string list = listed_by_qemu(theirs.file.path);
    EXPECT_EQ(listed_by_qemu(ours.file.path), list);
    EXPECT_EQ(listed_by_us(ours.file.path), list);
    EXPECT_EQ(listed_by_us(theirs.file.path), list);
    for (const std::string& name : history.names()) {
      SCOPED_TRACE(name);
      const std::string dirty = dirty_by_qemu(theirs.file.path, name);
      EXPECT_EQ(dirty_by_qemu(ours.file.path, name), dirty);
      EXPECT_EQ(dirty_by_us(ours.file.path, name), dirty);
      EXPECT_EQ(dirty_by_us(theirs.file.path, name), dirty);
    }
  }
  const absl::Status same = testing::qemu_compare(ours.file, theirs.file);
  EXPECT_TRUE(same.ok()) << same;
}

INSTANTIATE_TEST_SUITE_P(
    Variants, BitmapHistories,
    ::testing::Values(
        Variant{"cluster_size=64k", 5 * kMib, 65536},
        Variant{"cluster_size=512", 3 * kMib, 512},
        Variant{"cluster_size=4k", kMib + 1536, 4096},
        Variant{"cluster_size=1k,refcount_bits=1", 2 * kMib, 1024},
        Variant{"cluster_size=16k,extended_l2=on", 2 * kMib, 16384},
        Variant{"cluster_size=2M", 33 * kMib, 2u << 20}));

// Bits that fill many clusters, all of them and some.
TEST(Bitmaps, OfALargeDisk) {
  constexpr uint64_t kSize = uint64_t{2} << 30;
  const TemporaryImage image("cluster_size=512", kSize);
  {
    auto opened = open_image(image.file.path);
    ASSERT_TRUE(opened.ok()) << opened.status();
    BlockDriver& driver = **opened;
    ASSERT_TRUE(driver.add_bitmap({"fine", 512, true}).ok());
    ASSERT_TRUE(driver.add_bitmap({"coarse", 1 << 20, true}).ok());
    std::mt19937_64 random(testing::test_seed());
    for (int i = 0; i < 200; ++i)
      ASSERT_TRUE(
          write_at(driver, {random() % (kSize / 512) * 512, 512}, 1).ok());
    ASSERT_TRUE(driver.discard({kMib, 600 * kMib}).ok());
    ASSERT_TRUE(driver.close().ok());
  }
  EXPECT_TRUE(qemu_check(image.file).ok());
  for (const char* name : {"fine", "coarse"}) {
    const std::string dirty = dirty_by_qemu(image.file.path, name);
    EXPECT_EQ(dirty_by_us(image.file.path, name), dirty);
    EXPECT_TRUE(absl::StrContains(dirty, "+")) << dirty;
  }
  ASSERT_TRUE(qemu_io(image.file, {"write 7k 3k", "discard 900M 300M"}).ok());
  for (const char* name : {"fine", "coarse"}) {
    EXPECT_EQ(dirty_by_us(image.file.path, name),
              dirty_by_qemu(image.file.path, name));
  }
}

// ---- In use -----------------------------------------------------------------

TEST(Bitmaps, AreInUseWhileTheImageIsOpenForWriting) {
  const TemporaryImage image("", kMib);
  const std::string copy = tmpfs_path("copy");
  const auto copied = [&] {
    EXPECT_TRUE(run_tool_ok({"cp", image.file.path, copy}).ok());
    std::string list = listed_by_qemu(copy);
    ::unlink(copy.c_str());
    return list;
  };
  ASSERT_TRUE(
      run_tool_ok({"qemu-img", "bitmap", "--add", image.file.path, "b"}).ok());
  const auto before = testing::read_file(image.file.path);
  {
    const auto reader = open_image(image.file.path, /*read_only=*/true);
    ASSERT_TRUE(reader.ok());
    ASSERT_TRUE((*reader)->close().ok());
    const auto after = testing::read_file(image.file.path);
    EXPECT_TRUE(*before == *after);
  }
  auto opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  BlockDriver& driver = **opened;
  EXPECT_EQ(copied(), "b 65536 in-use,auto,\n");
  ASSERT_TRUE(write_at(driver, {0, 512}, 1).ok());
  ASSERT_TRUE(driver.reopen({.read_only = true}).ok());
  EXPECT_EQ(copied(), "b 65536 auto,\n");
  EXPECT_EQ(driver.list_bitmaps()->at(0).dirty_bytes, 65536u);
  ASSERT_TRUE(driver.reopen({.read_only = false}).ok());
  EXPECT_EQ(copied(), "b 65536 in-use,auto,\n");
  ASSERT_TRUE(write_at(driver, {1 << 19, 512}, 1).ok());
  ASSERT_TRUE(driver.inactivate().ok());
  EXPECT_EQ(copied(), "b 65536 auto,\n");
  // Somebody else's turn.
  ASSERT_TRUE(qemu_io(image.file, {"write 128k 1"}).ok());
  ASSERT_TRUE(driver.activate().ok());
  EXPECT_EQ(copied(), "b 65536 in-use,auto,\n");
  EXPECT_EQ(driver.list_bitmaps()->at(0).dirty_bytes, 3u * 65536);
  CheckOptions repair;
  repair.fix_errors = repair.fix_leaks = true;
  ASSERT_TRUE(driver.check(repair).ok());
  ASSERT_TRUE(write_at(driver, {kMib - 512, 512}, 1).ok());
  EXPECT_EQ(driver.list_bitmaps()->at(0).dirty_bytes, 4u * 65536);
  ASSERT_TRUE(driver.close().ok());
  opened->reset();
  EXPECT_EQ(copied(), "b 65536 auto,\n");
  EXPECT_EQ(dirty_by_qemu(image.file.path, "b"),
            "0+65536 131072+65536 524288+65536 983040+65536 ");
  EXPECT_TRUE(qemu_check(image.file).ok());
}

TEST(Bitmaps, FoundInUseCanOnlyBeRemoved) {
  const TemporaryImage image("", kMib);
  {
    auto crashed = open_image(image.file.path);
    ASSERT_TRUE(crashed.ok());
    ASSERT_TRUE((*crashed)->add_bitmap({"b", 0, true}).ok());
    ASSERT_TRUE((*crashed)->close().ok());
    crashed = open_image(image.file.path);
    ASSERT_TRUE(crashed.ok());
    ASSERT_TRUE((*crashed)->add_bitmap({"c", 0, true}).ok());
    ASSERT_TRUE(write_at(**crashed, {0, 512}, 1).ok());
    ASSERT_TRUE((*crashed)->flush().ok());
    // And no close().
  }
  EXPECT_EQ(listed_by_qemu(image.file.path), "b 65536 in-use,auto,\n");
  auto opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  BlockDriver& driver = **opened;
  const auto list = driver.list_bitmaps();
  ASSERT_EQ(list->size(), 1u);
  EXPECT_TRUE(list->at(0).inconsistent);
  const std::string message = "Bitmap 'b' is inconsistent and cannot be used";
  for (const absl::Status& status :
       {driver.clear_bitmap("b"), driver.enable_bitmap("b", true),
        driver.find_bitmap("b").status(),
        driver.merge_bitmap("b", DirtyBitmap(kMib, 512))}) {
    EXPECT_EQ(status.message(), message);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_EQ(driver.add_bitmap({"b", 0, true}).message(),
            "Bitmap already exists: b");
  // It stays what it is beside others that come and go.
  ASSERT_TRUE(driver.add_bitmap({"d", 4096, false}).ok());
  ASSERT_TRUE(driver.close().ok());
  EXPECT_EQ(listed_by_qemu(image.file.path), "b 65536 in-use,auto,\nd 4096 \n");
  opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok());
  ASSERT_TRUE((*opened)->remove_bitmap("b").ok());
  ASSERT_TRUE((*opened)->close().ok());
  EXPECT_EQ(listed_by_qemu(image.file.path), "d 4096 \n");
  const absl::Status clean = qemu_check(image.file);
  EXPECT_TRUE(clean.ok()) << clean;
}

// ---- Limits -----------------------------------------------------------------

TEST(Bitmaps, NewOnesHaveQemusLimits) {
  const TemporaryImage image("", uint64_t{10} << 40);
  const auto opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok());
  BlockDriver& driver = **opened;
  const std::string cannot =
      absl::StrCat("' persistent in '", image.file.path, "': ");
  const auto message = [&](const NewDirtyBitmap& wanted) {
    return std::string(driver.add_bitmap(wanted).message());
  };
  EXPECT_EQ(message({"", 0}), "Bitmap name cannot be empty");
  EXPECT_EQ(message({"b", 256}),
            "Granularity must be power of 2 and at least 512");
  EXPECT_EQ(message({"b", 1000}),
            "Granularity must be power of 2 and at least 512");
  EXPECT_EQ(message({"b", uint64_t{1} << 32}),
            absl::StrCat("Can't make bitmap 'b", cannot,
                         "Granularity exceeds maximum (2147483648 bytes)"));
  EXPECT_EQ(message({"b", 1024}),
            absl::StrCat("Can't make bitmap 'b", cannot,
                         "Too much space will be occupied by the bitmap. Use "
                         "larger granularity"));
  const std::string longest(1023, 'n');
  EXPECT_TRUE(absl::EndsWith(message({longest + "n", 0}),
                             "Name length exceeds maximum (1023 characters)"));
  EXPECT_EQ(message({longest, 4096}), "");
  EXPECT_EQ(message({"largest", uint64_t{1} << 31}), "");
  EXPECT_EQ(driver.remove_bitmap("none").message(),
            "Dirty bitmap 'none' not found");
  ASSERT_TRUE(driver.close().ok());
  EXPECT_EQ(listed_by_qemu(image.file.path),
            absl::StrCat(longest, " 4096 auto,\nlargest 2147483648 auto,\n"));
  EXPECT_TRUE(qemu_check(image.file).ok());
}

TEST(Bitmaps, AreNotForVersion2) {
  const TemporaryImage image("compat=0.10", kMib);
  const auto opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok());
  EXPECT_TRUE(absl::EndsWith((*opened)->add_bitmap({"b", 0, true}).message(),
                             "Cannot store dirty bitmaps in qcow2 v2 files"));
  EXPECT_TRUE((*opened)->list_bitmaps()->empty());
  ASSERT_TRUE((*opened)->close().ok());
}

TEST(Bitmaps, ManyCanBeKept) {
  const TemporaryImage image("", kMib);
  {
    auto opened = open_image(image.file.path);
    ASSERT_TRUE(opened.ok());
    for (int i = 0; i < 300; ++i) {
      ASSERT_TRUE(
          (*opened)
              ->add_bitmap({absl::StrCat(i, std::string(900, 'x')), 0, false})
              .ok());
    }
    ASSERT_TRUE((*opened)->close().ok());
  }
  EXPECT_TRUE(qemu_check(image.file).ok());
  auto opened = open_image(image.file.path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->list_bitmaps()->size(), 300u);
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(
        (*opened)->remove_bitmap(absl::StrCat(i, std::string(900, 'x'))).ok());
  }
  ASSERT_TRUE((*opened)->close().ok());
  opened->reset();
  EXPECT_TRUE(qemu_check(image.file).ok());
  EXPECT_EQ(listed_by_qemu(image.file.path), "");
}

// ---- Others -----------------------------------------------------------------

TEST(Bitmaps, AreIgnoredWhenAProgramWithoutThemWroteTheImage) {
  const TemporaryImage image("", kMib);
  ASSERT_TRUE(
      run_tool_ok({"qemu-img", "bitmap", "--add", image.file.path, "b"}).ok());
  auto bytes = testing::read_file(image.file.path);
  (*bytes)[95] = 0;  // autoclear bit 0
  ASSERT_TRUE(testing::write_file(image.file.path, *bytes).ok());
  EXPECT_EQ(listed_by_us(image.file.path), "");
  {
    const auto opened = open_image(image.file.path);
    ASSERT_TRUE(opened.ok());
    EXPECT_TRUE((*opened)->list_bitmaps()->empty());
    // The old extension gives way.
    ASSERT_TRUE((*opened)->add_bitmap({"new", 0, true}).ok());
    ASSERT_TRUE((*opened)->close().ok());
  }
  EXPECT_EQ(listed_by_qemu(image.file.path), "new 65536 auto,\n");
  EXPECT_TRUE(
      run_tool_ok({"qemu-img", "check", "-r", "leaks", image.file.path}).ok());
  EXPECT_TRUE(qemu_check(image.file).ok());
}

TEST(Bitmaps, StandBesideSnapshots) {
  const TemporaryImage image("cluster_size=4k", kMib);
  {
    const auto opened = open_image(image.file.path);
    ASSERT_TRUE(opened.ok());
    BlockDriver& driver = **opened;
    ASSERT_TRUE(driver.add_bitmap({"b", 4096, true}).ok());
    ASSERT_TRUE(write_at(driver, {0, 8192}, 1).ok());
    SnapshotInfo wanted;
    wanted.name = "s";
    ASSERT_TRUE(driver.create_snapshot(wanted).ok());
    ASSERT_TRUE(write_at(driver, {1 << 19, 512}, 2).ok());
    EXPECT_EQ(driver.apply_snapshot("s").message(),
              "Device has active dirty bitmaps");
    ASSERT_TRUE(driver.close().ok());
  }
  EXPECT_EQ(dirty_by_qemu(image.file.path, "b"), "0+8192 524288+4096 ");
  EXPECT_TRUE(qemu_check(image.file).ok());
  {
    const auto opened = open_image(image.file.path);
    ASSERT_TRUE(opened.ok());
    ASSERT_TRUE((*opened)->delete_snapshot("s").ok());
    ASSERT_TRUE((*opened)->remove_bitmap("b").ok());
    ASSERT_TRUE((*opened)->close().ok());
  }
  EXPECT_TRUE(qemu_check(image.file).ok());
}

// The extension pushes the backing file's name aside.
TEST(Bitmaps, LeaveTheBackingFilesNameWhole) {
  for (const size_t name_bytes : {1u, 40u, 900u}) {
    for (const char* cluster : {"512", "1k", "4k", "64k"}) {
      SCOPED_TRACE(absl::StrCat(name_bytes, " ", cluster));
      const std::string name(name_bytes, 'n');
      const std::string path = tmpfs_path("overlay");
      const auto made =
          run_tool_ok({"qemu-img", "create", "-u", "-f", "qcow2", "-o",
                       absl::StrCat("cluster_size=", cluster), "-F", "raw",
                       "-b", name, path, "1M"});
      // Where there is no room for the name.
      if (!made.ok()) continue;
      const ImageOpener opener(builtin_drivers(), {});
      OpenOptions options;
      options.open_backing = false;
      auto opened = opener.open(path, "qcow2", options);
      ASSERT_TRUE(opened.ok()) << opened.status();
      const absl::Status added = (*opened)->add_bitmap({"b", 0, true});
      ASSERT_TRUE((*opened)->close().ok());
      opened->reset();
      const auto info = run_tool_ok({"qemu-img", "info", path});
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_TRUE(
          absl::StrContains(*info,
                            absl::StrCat("backing file: ", name, "\n")) ||
          absl::StrContains(*info, absl::StrCat("backing file: ", name, " (")))
          << *info;
      EXPECT_TRUE(absl::StrContains(*info, "backing file format: raw"));
      EXPECT_EQ(added.ok(), absl::StrContains(*info, "granularity")) << *info;
      if (added.ok()) {
        const auto clean = run_tool_ok(
            {"qemu-img", "check",
             absl::StrCat("json:{'driver':'qcow2','backing':null,'file':"
                          "{'driver':'file','filename':'",
                          path, "'}}")});
        EXPECT_TRUE(clean.ok()) << clean.status();
      } else {
        EXPECT_EQ(added.code(), absl::StatusCode::kResourceExhausted) << added;
      }
      ::unlink(path.c_str());
    }
  }
}

}  // namespace
}  // namespace spindle::qcow2

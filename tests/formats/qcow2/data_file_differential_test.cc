// Random histories on images with an external data file, done by us and by
// QEMU: the same content, the same tables, and a clean check after each step.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::ImageFile;
using testing::tmpfs_path;

constexpr uint64_t kMib = uint64_t{1} << 20;

struct Step {
  enum class Kind { kWrite, kZero, kZeroUnmap, kDiscard };
  Kind kind;
  ByteRange range;
  uint8_t fill = 0;

  std::string text() const {
    static constexpr const char* kNames[] = {"write", "zero", "zero unmap",
                                             "discard"};
    return absl::StrCat(kNames[static_cast<int>(kind)], " ", range.offset, " ",
                        range.length, " ", fill);
  }
};

absl::Status write_by_us(BlockDriver& driver, ByteRange range, uint8_t fill) {
  std::vector<uint8_t> bytes(range.length, fill);
  return driver.write(IoVector(bytes.data(), bytes.size()),
                      Sector::from_byte_offset(range.offset));
}

absl::Status step_by_us(const std::string& path, const Step& step) {
  OpenOptions options;
  options.driver_options = {{"reuse", "lowest"}};
  auto opened = ImageOpener(builtin_drivers(), {}).open(path, "qcow2", options);
  if (!opened.ok()) return opened.status();
  BlockDriver& driver = **opened;
  absl::Status status;
  switch (step.kind) {
    case Step::Kind::kWrite:
      status = write_by_us(driver, step.range, step.fill);
      break;
    case Step::Kind::kZero:
    case Step::Kind::kZeroUnmap:
      status = driver.write_zeroes(
          step.range, {.may_unmap = step.kind == Step::Kind::kZeroUnmap});
      break;
    case Step::Kind::kDiscard:
      status = driver.discard(step.range);
      break;
  }
  const absl::Status closed = driver.close();
  return status.ok() ? closed : status;
}

absl::Status step_by_qemu(const std::string& path, const Step& step) {
  const std::string range =
      absl::StrCat(step.range.offset, " ", step.range.length);
  std::string command;
  switch (step.kind) {
    case Step::Kind::kWrite:
      command = absl::StrCat("write -P ", step.fill, " ", range);
      break;
    case Step::Kind::kZero:
      command = absl::StrCat("write -z ", range);
      break;
    case Step::Kind::kZeroUnmap:
      command = absl::StrCat("write -z -u ", range);
      break;
    case Step::Kind::kDiscard:
      command = absl::StrCat("discard ", range);
      break;
  }
  return testing::qemu_io({path, "qcow2"}, {command});
}

struct Variant {
  const char* options;
  uint64_t size_bytes;
  uint64_t cluster_bytes;
  bool raw = false;
  bool backing = false;
};

Step random_step(const Variant& variant, std::mt19937_64* random) {
  const auto dice = [random](uint64_t limit) { return (*random)() % limit; };
  const uint64_t sectors = variant.size_bytes / 512;
  const uint64_t kind = dice(10);
  ByteRange range;
  range.offset = dice(sectors) * 512;
  range.length = (dice(4 * variant.cluster_bytes / 512) + 1) * 512;
  if (kind >= 6) {  // whole clusters; the first one often, which lies at 0
    range.offset = dice(3) == 0 ? 0
                                : range.offset / variant.cluster_bytes *
                                      variant.cluster_bytes;
    range.length = (dice(4) + 1) * variant.cluster_bytes;
  }
  range.length = std::min(range.length, variant.size_bytes - range.offset);
  Step step{Step::Kind::kWrite, range, static_cast<uint8_t>(dice(255) + 1)};
  if (kind >= 6) step.kind = Step::Kind::kZero;
  if (kind >= 7) step.kind = Step::Kind::kZeroUnmap;
  if (kind >= 8) step.kind = Step::Kind::kDiscard;
  return step;
}

struct Pair {
  ImageFile image;
  ImageFile data;
};

// A cluster at 0 of the data file is told from none by one bit only.
std::vector<Step> steps_of(const Variant& variant, std::mt19937_64* random) {
  const ByteRange first{0, variant.cluster_bytes};
  std::vector<Step> steps = {{Step::Kind::kWrite, first, 1},
                             {Step::Kind::kZero, first, 0},
                             {Step::Kind::kDiscard, first, 0}};
  while (steps.size() < 40) steps.push_back(random_step(variant, random));
  return steps;
}

Pair make(const Variant& variant, const char* whose,
          const std::optional<ImageFile>& backing) {
  Pair pair{{tmpfs_path(whose), "qcow2"},
            {tmpfs_path(absl::StrCat(whose, "_data")), "raw"}};
  EXPECT_TRUE(
      testing::qemu_create(
          {.image = pair.image,
           .size_bytes = variant.size_bytes,
           .options = absl::StrCat("data_file=", pair.data.path,
                                   variant.raw ? ",data_file_raw=on," : ",",
                                   variant.options),
           .backing = backing})
          .ok());
  return pair;
}

class DataFileHistories : public ::testing::TestWithParam<Variant> {};

TEST_P(DataFileHistories, AreQemus) {
  const Variant& variant = GetParam();
  std::mt19937_64 random(testing::test_seed());
  std::optional<ImageFile> backing;
  if (variant.backing) {
    backing = ImageFile{tmpfs_path("backing"), "raw"};
    const std::vector<uint8_t> bytes(variant.size_bytes - 3 * 512, 0xbb);
    ASSERT_TRUE(testing::write_file(backing->path, bytes).ok());
  }
  const Pair ours = make(variant, "ours", backing);
  const Pair theirs = make(variant, "theirs", backing);
  for (const Step& step : steps_of(variant, &random)) {
    if (HasFailure()) break;
    SCOPED_TRACE(step.text());
    const absl::Status by_us = step_by_us(ours.image.path, step);
    EXPECT_TRUE(by_us.ok()) << by_us;
    const absl::Status by_qemu = step_by_qemu(theirs.image.path, step);
    EXPECT_TRUE(by_qemu.ok()) << by_qemu;
    const absl::Status clean = testing::qemu_check(ours.image);
    EXPECT_TRUE(clean.ok()) << clean;
    const absl::Status same = testing::qemu_compare(ours.image, theirs.image);
    EXPECT_TRUE(same.ok()) << same;
    const auto our_map = testing::qemu_map(ours.image);
    const auto their_map = testing::qemu_map(theirs.image);
    ASSERT_TRUE(our_map.ok() && their_map.ok());
    EXPECT_EQ(testing::placement(*our_map), testing::placement(*their_map));
    if (variant.raw) {
      // Not by qemu_compare(): QEMU makes raw data files that end with a whole
      // cluster.
      const auto raw =
          testing::run_tool_ok({"qemu-img", "compare", "-f", "raw", "-F",
                                "qcow2", ours.data.path, ours.image.path});
      EXPECT_TRUE(raw.ok()) << raw.status();
    }
  }
  // Tables and refcounts, to the byte.
  auto our_bytes = *testing::read_file(ours.image.path);
  auto their_bytes = *testing::read_file(theirs.image.path);
  ASSERT_GE(std::min(our_bytes.size(), their_bytes.size()),
            variant.cluster_bytes);
  // The header names the data file.
  for (auto* bytes : {&our_bytes, &their_bytes}) {
    bytes->erase(bytes->begin(),
                 bytes->begin() + static_cast<int64_t>(variant.cluster_bytes));
  }
  EXPECT_TRUE(our_bytes == their_bytes);
  // And what QEMU wrote reads the same here.
  OpenOptions read_only;
  read_only.read_only = true;
  for (const Pair& pair : {ours, theirs}) {
    const auto opened = ImageOpener(builtin_drivers(), {})
                            .open(pair.image.path, "qcow2", read_only);
    ASSERT_TRUE(opened.ok()) << opened.status();
    std::vector<uint8_t> content(variant.size_bytes);
    ASSERT_TRUE((*opened)
                    ->read(IoVector(content.data(), content.size()),
                           Sector::from_byte_offset(0))
                    .ok());
    const std::string plain = tmpfs_path("plain");
    ASSERT_TRUE(testing::write_file(plain, content).ok());
    const absl::Status same = testing::qemu_compare({plain, "raw"}, pair.image);
    EXPECT_TRUE(same.ok()) << same;
    ::unlink(plain.c_str());
    ::unlink(pair.image.path.c_str());
    ::unlink(pair.data.path.c_str());
  }
  if (backing.has_value()) ::unlink(backing->path.c_str());
}

INSTANTIATE_TEST_SUITE_P(
    Variants, DataFileHistories,
    ::testing::Values(
        Variant{"cluster_size=64k", 3 * kMib, 65536},
        Variant{"cluster_size=64k", 3 * kMib, 65536, true},
        Variant{"cluster_size=64k", 3 * kMib, 65536, false, true},
        Variant{"cluster_size=512", 128 << 10, 512},
        Variant{"cluster_size=512", 128 << 10, 512, true},
        Variant{"cluster_size=4k,refcount_bits=1", kMib - 1536, 4096},
        Variant{"cluster_size=4k,refcount_bits=64", kMib - 1536, 4096, true},
        Variant{"cluster_size=4k", kMib - 1536, 4096, false, true},
        Variant{"cluster_size=64k,extended_l2=on", 3 * kMib, 65536},
        Variant{"cluster_size=16k,extended_l2=on", kMib, 16384, true},
        Variant{"cluster_size=64k,extended_l2=on", 3 * kMib, 65536, false,
                true}));

}  // namespace
}  // namespace spindle::qcow2

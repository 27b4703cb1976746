#include "formats/qcow2/snapshots.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tests/formats/qcow2/image_steps.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/failing_accesses.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::ImageFile;
using testing::qemu_check;
using testing::Step;
using testing::tmpfs_path;

constexpr uint64_t kMib = uint64_t{1} << 20;

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
    const uint64_t dice = random_() % 20;
    if (dice < 4 && names_.size() < 5) {
      names_.push_back(absl::StrCat("s", ++made_));
      return {Step::Kind::kCreate, 0, 0, 0, names_.back()};
    }
    if (dice < 6 && !names_.empty())
      return {Step::Kind::kApply, 0, 0, 0, any_name()};
    if (dice < 8 && !names_.empty()) {
      const std::string name = any_name();
      std::erase(names_, name);
      return {Step::Kind::kDelete, 0, 0, 0, name};
    }
    const auto fill = static_cast<uint8_t>(random_() % 255 + 1);
    const uint64_t sectors = variant_.size_bytes / 512;
    uint64_t first = random_() % sectors * 512;
    uint64_t length =
        (random_() % (4 * uint64_t{variant_.cluster_bytes} / 512) + 1) * 512;
    length = std::min(length, variant_.size_bytes - first);
    if (dice < 17) return {Step::Kind::kWrite, first, length, fill, ""};
    first = align(first);
    length = std::min<uint64_t>((random_() % 4 + 1) * variant_.cluster_bytes,
                                variant_.size_bytes - first);
    return {dice < 18 ? Step::Kind::kZero : Step::Kind::kDiscard, first, length,
            0, ""};
  }
  const std::vector<std::string>& names() const { return names_; }

 private:
  uint64_t align(uint64_t offset) const {
    return offset / variant_.cluster_bytes * variant_.cluster_bytes;
  }
  std::string any_name() { return names_[random_() % names_.size()]; }

  const Variant variant_;
  std::mt19937_64 random_;
  std::vector<std::string> names_;
  int made_ = 0;
};

class SnapshotHistories : public ::testing::TestWithParam<Variant> {};

TEST_P(SnapshotHistories, AreQemus) {
  const uint64_t seed = testing::test_seed();
  const Variant& variant = GetParam();
  const ImageFile ours{tmpfs_path("ours"), "qcow2"};
  const ImageFile theirs{tmpfs_path("theirs"), "qcow2"};
  for (const ImageFile& image : {ours, theirs}) {
    ASSERT_TRUE(testing::qemu_create({.image = image,
                                      .size_bytes = variant.size_bytes,
                                      .options = variant.options,
                                      .backing = {}})
                    .ok());
  }
  History history(variant, seed);
  for (int i = 0; i < 40 && !HasFailure(); ++i) {
    const Step step = history.next();
    SCOPED_TRACE(absl::StrCat("step ", i, ": ", step.text()));
    const absl::Status by_us = testing::step_by_us(ours.path, step);
    const absl::Status by_qemu = testing::step_by_qemu(theirs.path, step);
    EXPECT_EQ(by_us.ok(), by_qemu.ok()) << by_us << "\n" << by_qemu;
    const absl::Status clean = qemu_check(ours);
    EXPECT_TRUE(clean.ok()) << clean;
    EXPECT_EQ(testing::listed_by_qemu(ours.path),
              testing::listed_by_qemu(theirs.path));
    EXPECT_EQ(testing::listed_by_us(ours.path),
              testing::listed_by_qemu(theirs.path));
    const absl::Status same = testing::qemu_compare(ours, theirs);
    EXPECT_TRUE(same.ok()) << same;
    // Clusters lie where QEMU puts them.
    const auto our_map = testing::qemu_map(ours);
    const auto their_map = testing::qemu_map(theirs);
    ASSERT_TRUE(our_map.ok() && their_map.ok());
    EXPECT_EQ(testing::placement(*our_map), testing::placement(*their_map));
  }
  for (const std::string& name : history.names()) {
    EXPECT_TRUE(testing::content_by_qemu(ours.path, name) ==
                testing::content_by_qemu(theirs.path, name))
        << name;
  }
  ::unlink(ours.path.c_str());
  ::unlink(theirs.path.c_str());
}

INSTANTIATE_TEST_SUITE_P(
    Variants, SnapshotHistories,
    ::testing::Values(Variant{"cluster_size=64k", 3 * kMib, 65536},
                      Variant{"cluster_size=512", 256 << 10, 512},
                      Variant{"cluster_size=4k,compat=0.10", kMib, 4096},
                      Variant{"cluster_size=4k,refcount_bits=4", kMib, 4096},
                      Variant{"cluster_size=4k,refcount_bits=64", kMib, 4096}));

// ---- Errors at each access --------------------------------------------------

using testing::FailAt;
using testing::for_each_failing_access;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::read_bytes;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kDiskBytes = 32 * kCluster;

SnapshotInfo named(const std::string& name) {
  SnapshotInfo info;
  info.name = name;
  return info;
}

std::string disk_of(BlockDriver& driver) {
  const auto content = read_bytes(driver, {0, driver.length_bytes()});
  return content.ok() ? *content : content.status().ToString();
}

// Snapshots "a" and "b", and changes after each; the disk is `disk_bytes` long
// in the end.
std::string image_with_two_snapshots(uint64_t disk_bytes) {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create["cluster_size"] = absl::StrCat(kCluster);
  MemoryImage image(options);
  EXPECT_TRUE(image.write({0, 8 * kCluster}, 1).ok());
  EXPECT_TRUE(image.driver().create_snapshot(named("a")).ok());
  EXPECT_TRUE(image.write({2 * kCluster, 4 * kCluster}, 2).ok());
  EXPECT_TRUE(image.driver().create_snapshot(named("b")).ok());
  EXPECT_TRUE(image.write({4 * kCluster + 512, 6 * kCluster}, 3).ok());
  EXPECT_TRUE(image.discard({0, kCluster}).ok());
  EXPECT_TRUE(
      image.driver().set_length(disk_bytes, SetLengthMode::kExact).ok());
  EXPECT_TRUE(image.write({disk_bytes - kCluster, kCluster}, 4).ok());
  EXPECT_TRUE(image.close().ok());
  return image.memory().content();
}

struct Operation {
  const char* name;
  std::function<absl::Status(BlockDriver&)> run;
  uint64_t disk_bytes = kDiskBytes;
};

// Leaks do no harm, and neither does an entry whose COPIED flag is not what the
// refcount says, as long as nothing but the disk refers to its cluster.
bool is_harmless(const absl::Status& checked) {
  if (!absl::StrContains(checked.message(), "exit code 2")) return false;
  for (absl::string_view line :
       absl::StrSplit(checked.message(), absl::ByAnyChar("\n"))) {
    if (absl::StrContains(line, "ERROR") &&
        !absl::StrContains(line, "ERROR OFLAG_COPIED")) {
      return false;
    }
  }
  return true;
}

class SnapshotErrors : public ::testing::TestWithParam<Operation> {};

// Whatever access fails: the caller learns of it, the disk has its old content
// or its new one, the snapshots theirs, and the file has leaks at worst.
TEST_P(SnapshotErrors, LeaveTheImageAsItWas) {
  const Operation& operation = GetParam();
  MemoryImageOptions options;
  options.bytes = image_with_two_snapshots(operation.disk_bytes);
  std::string before;
  std::string after;
  {
    MemoryImage image(options);
    before = disk_of(image.driver());
    ASSERT_TRUE(operation.run(image.driver()).ok());
    after = disk_of(image.driver());
    ASSERT_TRUE(image.close_and_check().ok());
  }
  const int failed_accesses = for_each_failing_access([&](const FailAt& fail) {
    MemoryImage image(options);
    fail.arm(&image.file());
    const absl::Status status = operation.run(image.driver());
    if (image.file().failure_count() == 0) return false;
    image.file().clear_failures();
    const std::string now = disk_of(image.driver());
    EXPECT_TRUE(now == after || (now == before && !status.ok())) << status;
    image.close().IgnoreError();
    const absl::Status checked = testing::check_image_bytes(
        image.memory().content(), testing::Leaks::kAllowed);
    EXPECT_TRUE(checked.ok() || is_harmless(checked)) << status << "\n"
                                                      << checked;
    const auto copy = image.open_copy(image.memory().content());
    EXPECT_TRUE(copy.ok()) << copy.status();
    if (!copy.ok()) return true;
    const std::string later = disk_of(**copy);
    // A new length needs two writes.  If nothing works after the first, not
    // even taking it back, the new disk keeps the old length.
    std::string half_way = after;
    half_way.resize(before.size());
    const bool stuck = !status.ok() && later == half_way && fail.from_then_on();
    EXPECT_TRUE(later == after || (later == before && !status.ok()) || stuck);
    return true;
  });
  EXPECT_GT(failed_accesses, 10);
}

INSTANTIATE_TEST_SUITE_P(
    Operations, SnapshotErrors,
    ::testing::Values(
        Operation{"create",
                  [](BlockDriver& image) {
                    return image.create_snapshot(named("c")).status();
                  }},
        Operation{"apply",
                  [](BlockDriver& image) { return image.apply_snapshot("a"); }},
        Operation{"apply a shorter one",
                  [](BlockDriver& image) { return image.apply_snapshot("a"); },
                  3 * kDiskBytes},
        Operation{"apply a longer one",
                  [](BlockDriver& image) { return image.apply_snapshot("a"); },
                  16 * kCluster},
        Operation{
            "delete the first",
            [](BlockDriver& image) { return image.delete_snapshot("a"); }},
        Operation{"delete the last", [](BlockDriver& image) {
                    return image.delete_snapshot("b");
                  }}));

}  // namespace
}  // namespace spindle::qcow2

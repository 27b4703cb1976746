// Histories with resizes, led by us and by QEMU through an image each: the same
// content, clusters in the same places, and nothing that qemu-img check finds.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "tests/formats/qcow2/image_steps.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::ImageFile;
using testing::Step;
using testing::tmpfs_path;

struct Variant {
  const char* name;
  const char* options;
  uint64_t cluster_bytes;
  uint64_t size_bytes;
  // The disk ends where clusters end: then QEMU, too, lets nothing old come
  // back, and everything is where it has it.
  bool whole_clusters = true;
  // Of a backing file; 0: none.
  uint64_t backing_bytes = 0;
  // preallocation=falloc and =full: QEMU moves the refcounts for that.
  bool reserves_space = false;
  // Data in a file of their own.
  enum class DataFile { kNone, kCooked, kRaw };
  DataFile data_file = DataFile::kNone;
};

class History {
 public:
  History(const Variant& variant, uint64_t seed)
      : variant_(variant), random_(seed), size_(variant.size_bytes) {}

  Step next();
  // What has become of the last step.
  void note(const Step& step, bool done);
  uint64_t size() const { return size_; }
  // Of a snapshot.
  uint64_t size_of(const std::string& name) const { return sizes_.at(name); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, size] : sizes_) names.push_back(name);
    return names;
  }

 private:
  Step resize();
  Step data_step(uint64_t dice);
  std::string any_name() {
    return std::next(sizes_.begin(),
                     static_cast<std::ptrdiff_t>(random_() % sizes_.size()))
        ->first;
  }

  const Variant variant_;
  std::mt19937_64 random_;
  uint64_t size_;
  std::map<std::string, uint64_t> sizes_;  // of snapshots
  int made_ = 0;
};

Step History::next() {
  const uint64_t dice = random_() % 24;
  if (dice < 2 && sizes_.size() < 3)
    return {.kind = Step::Kind::kCreate,
            .snapshot = absl::StrCat("s", ++made_)};
  if (dice < 3 && !sizes_.empty())
    return {.kind = Step::Kind::kApply, .snapshot = any_name()};
  if (dice < 5 && !sizes_.empty())
    return {.kind = Step::Kind::kDelete, .snapshot = any_name()};
  if (dice < 13 || size_ == 0) return resize();
  return data_step(dice);
}

Step History::resize() {
  const uint64_t unit = variant_.whole_clusters ? variant_.cluster_bytes : 512;
  Step step{.kind = Step::Kind::kResize,
            .length = random_() % (2 * variant_.size_bytes / unit) * unit};
  if (random_() % 8 == 0) step.length = size_ + unit;
  if (step.length > size_ && random_() % 4 == 0) {
    step.preallocation = Preallocation::kMetadata;
    if (variant_.reserves_space)
      step.preallocation =
          random_() % 2 == 0 ? Preallocation::kFalloc : Preallocation::kFull;
  }
  return step;
}

Step History::data_step(uint64_t dice) {
  const uint64_t unit = dice < 20 ? 512 : variant_.cluster_bytes;
  const uint64_t offset = random_() % divide_round_up(size_, unit) * unit;
  const uint64_t length =
      std::min((random_() % (6 * variant_.cluster_bytes / unit) + 1) * unit,
               size_ - offset);
  if (dice < 20) {
    return {.kind = Step::Kind::kWrite,
            .offset = offset,
            .length = length,
            .fill = static_cast<uint8_t>(random_() % 255 + 1)};
  }
  return {.kind = dice < 22 ? Step::Kind::kZero : Step::Kind::kDiscard,
          .offset = offset,
          .length = length};
}

void History::note(const Step& step, bool done) {
  if (!done) return;
  if (step.kind == Step::Kind::kCreate) sizes_[step.snapshot] = size_;
  if (step.kind == Step::Kind::kDelete) sizes_.erase(step.snapshot);
  if (step.kind == Step::Kind::kApply) size_ = sizes_[step.snapshot];
  if (step.kind == Step::Kind::kResize) size_ = step.length;
}

// With preallocation=falloc or =full QEMU gives the file the length that its
// last used cluster and the new ones need, and refuses if the file has more:
// what was freed at its end may be longer than what is new.
bool wants_to_shorten_file(const absl::Status& by_qemu) {
  return absl::StrContains(by_qemu.message(),
                           "Cannot use preallocation for shrinking files");
}

class ResizeHistories : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override;
  void TearDown() override {
    for (const std::string& path :
         {ours_.path, theirs_.path, backing_, data_of(ours_), data_of(theirs_)})
      ::unlink(path.c_str());
  }
  // QEMU shows what an earlier shrink left in the last cluster; nobody should.
  void clear_tail_of_theirs(uint64_t old_size, uint64_t new_size);
  // QEMU preallocates freed clusters as they are, old metadata and all.
  void clear_preallocated_by_theirs(uint64_t old_size, const Step& step);
  void compare(bool places) const;
  void compare_data_files() const;
  static std::string data_of(const ImageFile& image) {
    return absl::StrCat(image.path, ".data");
  }

  const ImageFile ours_{tmpfs_path("ours"), "qcow2"};
  const ImageFile theirs_{tmpfs_path("theirs"), "qcow2"};
  const std::string backing_ = tmpfs_path("backing");
};

void ResizeHistories::SetUp() {
  const Variant& variant = GetParam();
  std::optional<ImageFile> backing;
  if (variant.backing_bytes != 0) {
    std::vector<uint8_t> bytes(variant.backing_bytes);
    for (uint64_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<uint8_t>(i / 512 % 251 + 1);
    ASSERT_TRUE(testing::write_file(backing_, bytes).ok());
    backing = {backing_, "raw"};
  }
  for (const ImageFile& image : {ours_, theirs_}) {
    std::string options = variant.options;
    if (variant.data_file != Variant::DataFile::kNone)
      absl::StrAppend(&options, ",data_file=", data_of(image));
    if (variant.data_file == Variant::DataFile::kRaw)
      absl::StrAppend(&options, ",data_file_raw=on");
    const absl::Status made =
        testing::qemu_create({.image = image,
                              .size_bytes = variant.size_bytes,
                              .options = options,
                              .backing = backing});
    ASSERT_TRUE(made.ok()) << made;
  }
}

void ResizeHistories::clear_tail_of_theirs(uint64_t old_size,
                                           uint64_t new_size) {
  const uint64_t end =
      std::min(align_up(old_size, GetParam().cluster_bytes), new_size);
  if (end <= old_size) return;
  const absl::Status status = testing::qemu_io(
      theirs_, {absl::StrCat("write -P 0 ", old_size, " ", end - old_size)});
  EXPECT_TRUE(status.ok()) << status;
}

void ResizeHistories::clear_preallocated_by_theirs(uint64_t old_size,
                                                   const Step& step) {
  const Variant& variant = GetParam();
  // With subclusters, or a backing file, the clusters read as zeroes whatever
  // they hold.
  const bool shows_clusters =
      variant.backing_bytes == 0 &&
      absl::string_view(variant.options).find("extended_l2") ==
          absl::string_view::npos;
  if (step.kind != Step::Kind::kResize || step.length <= old_size ||
      step.preallocation != Preallocation::kMetadata || !shows_clusters) {
    return;
  }
  const absl::Status status = testing::qemu_io(
      theirs_,
      {absl::StrCat("write -P 0 ", old_size, " ", step.length - old_size)});
  EXPECT_TRUE(status.ok()) << status;
}

void ResizeHistories::compare(bool places) const {
  const absl::Status clean = testing::qemu_check(ours_);
  EXPECT_TRUE(clean.ok()) << clean;
  const absl::Status same = testing::qemu_compare(ours_, theirs_);
  EXPECT_TRUE(same.ok()) << same;
  EXPECT_EQ(testing::listed_by_us(ours_.path),
            testing::listed_by_qemu(theirs_.path));
  if (!places) return;
  const auto our_map = testing::qemu_map(ours_);
  const auto their_map = testing::qemu_map(theirs_);
  ASSERT_TRUE(our_map.ok() && their_map.ok());
  EXPECT_EQ(testing::placement(*our_map), testing::placement(*their_map));
}

void ResizeHistories::compare_data_files() const {
  const Variant& variant = GetParam();
  if (variant.data_file == Variant::DataFile::kNone) return;
  const auto ours = testing::read_file(data_of(ours_));
  const auto theirs = testing::read_file(data_of(theirs_));
  ASSERT_TRUE(ours.ok() && theirs.ok());
  // Where a cluster is half the disk's, QEMU rounds the length up.
  if (variant.whole_clusters) {
    EXPECT_EQ(ours->size(), theirs->size());
  }
  if (variant.data_file != Variant::DataFile::kRaw) return;
  // It is the disk, at its length.
  const std::string disk = testing::content_by_qemu(ours_.path);
  EXPECT_TRUE(std::string(ours->begin(), ours->end()) == disk);
}

TEST_P(ResizeHistories, AreQemus) {
  const uint64_t seed = testing::test_seed();
  const Variant& variant = GetParam();
  History history(variant, seed);
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    const Step step = history.next();
    SCOPED_TRACE(
        absl::StrCat("step ", i, ", size ", history.size(), ": ", step.text()));
    const absl::Status by_qemu = testing::step_by_qemu(theirs_.path, step);
    if (wants_to_shorten_file(by_qemu)) continue;
    const absl::Status by_us = testing::step_by_us(ours_.path, step);
    ASSERT_EQ(by_us.ok(), by_qemu.ok()) << by_us << "\n" << by_qemu;
    if (by_us.ok() && step.kind == Step::Kind::kResize)
      clear_tail_of_theirs(history.size(), step.length);
    if (by_us.ok()) clear_preallocated_by_theirs(history.size(), step);
    history.note(step, by_us.ok());
    compare(variant.whole_clusters && !variant.reserves_space);
    compare_data_files();
  }
  for (const std::string& name : history.names()) {
    // QEMU shows as much as the disk has now; only the snapshot's own length is
    // its content.
    auto ours = testing::content_by_qemu(ours_.path, name);
    auto theirs = testing::content_by_qemu(theirs_.path, name);
    const uint64_t length = history.size_of(name);
    ours.resize(std::min<size_t>(ours.size(), length));
    theirs.resize(std::min<size_t>(theirs.size(), length));
    EXPECT_TRUE(ours == theirs) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Variants, ResizeHistories,
    ::testing::Values(
        Variant{"Default", "cluster_size=64k", 65536, 3 << 20},
        // An L1 entry covers 32 KiB, a refcount block 128 KiB, and the L1 table
        // of a cluster 2 MiB.
        Variant{"Small", "cluster_size=512", 512, 1 << 20},
        Variant{"WideRefcounts", "cluster_size=512,refcount_bits=64", 512,
                512 << 10},
        Variant{"Old", "cluster_size=4k,compat=0.10", 4096, 1 << 20},
        Variant{"Backing", "cluster_size=4k", 4096, 256 << 10, true, 384 << 10},
        Variant{"BackingOfSmall", "cluster_size=512", 512, 128 << 10, true,
                160 << 10},
        Variant{"OldWithBacking", "cluster_size=4k,compat=0.10", 4096,
                256 << 10, true, 384 << 10, true},
        Variant{"Subclusters", "cluster_size=16k,extended_l2=on", 16384,
                1 << 20},
        Variant{"SubclustersWithBacking", "cluster_size=16k,extended_l2=on",
                16384, 512 << 10, true, 768 << 10},
        Variant{"Ragged", "cluster_size=4k", 4096, 256 << 10, false},
        Variant{"RaggedWithBacking", "cluster_size=4k", 4096, 256 << 10, false,
                (384 << 10) + 1024},
        Variant{"Reserving", "cluster_size=4k", 4096, 256 << 10, true, 0, true},
        Variant{"ReservingWithBacking", "cluster_size=4k", 4096, 256 << 10,
                false, 384 << 10, true},
        Variant{"DataFile", "cluster_size=4k", 4096, 256 << 10, true, 0, false,
                Variant::DataFile::kCooked},
        Variant{"RawDataFile", "cluster_size=4k", 4096, 256 << 10, true, 0,
                false, Variant::DataFile::kRaw},
        Variant{"RaggedDataFile", "cluster_size=4k", 4096, 256 << 10, false, 0,
                false, Variant::DataFile::kCooked},
        Variant{"RaggedRawDataFile", "cluster_size=512", 512, 64 << 10, false,
                0, true, Variant::DataFile::kRaw},
        Variant{"DataFileWithBacking", "cluster_size=4k", 4096, 256 << 10, true,
                384 << 10, false, Variant::DataFile::kCooked},
        Variant{"ReservingDataFile", "cluster_size=4k", 4096, 256 << 10, true,
                0, true, Variant::DataFile::kCooked},
        Variant{"SubclustersDataFile", "cluster_size=16k,extended_l2=on", 16384,
                512 << 10, true, 0, false, Variant::DataFile::kCooked},
        Variant{"SubclustersRawDataFile", "cluster_size=16k,extended_l2=on",
                16384, 512 << 10, true, 0, false, Variant::DataFile::kRaw}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace spindle::qcow2

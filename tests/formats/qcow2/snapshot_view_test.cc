#include "formats/qcow2/snapshot_view.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::reads_as;

constexpr uint64_t kKib = 1024;

SnapshotInfo named(const std::string& name) {
  SnapshotInfo info;
  info.name = name;
  return info;
}

// A disk of 64 KiB filled with 3; snapshot 1, "a": 32 KiB of 1; 2, "1": 128 KiB
// of 2, behind which there is nothing.
class SnapshotView : public ::testing::Test {
 protected:
  SnapshotView() : image_(options()) {
    BlockDriver& driver = image_.driver();
    const auto fill = [&](uint64_t size, uint8_t value) {
      EXPECT_TRUE(driver.set_length(size, SetLengthMode::kExact).ok());
      EXPECT_TRUE(image_.write({0, size}, value).ok());
    };
    fill(32 * kKib, 1);
    EXPECT_TRUE(driver.create_snapshot(named("a")).ok());
    fill(128 * kKib, 2);
    EXPECT_TRUE(driver.create_snapshot(named("1")).ok());
    fill(64 * kKib, 3);
    EXPECT_TRUE(image_.close().ok());
    bytes_ = image_.memory().content();
  }

  static MemoryImageOptions options() {
    MemoryImageOptions options;
    options.size_bytes = 32 * kKib;
    options.create["cluster_size"] = "512";
    // Longer than any of the disks.
    options.backing = std::string(256 * kKib, 'b');
    return options;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(SnapshotChoice choice,
                                                    bool read_only = true) {
    auto file = std::make_shared<testing::MemoryDriver>();
    file->set_content(0, bytes_);
    OpenOptions options;
    options.read_only = read_only;
    options.snapshot = std::move(choice);
    return open_qcow2(std::move(file), options, image_.context());
  }
  void expect_disk(const SnapshotChoice& choice, uint64_t size, uint8_t value) {
    SCOPED_TRACE(
        absl::StrCat(choice.id, "/", choice.name, "/", choice.id_or_name));
    const auto view = open(choice);
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ((*view)->length_bytes(), size);
    EXPECT_EQ((*view)->info().virtual_size_bytes, size);
    EXPECT_TRUE((*view)->read_only());
    EXPECT_TRUE(reads_as(**view, {0, size}, value));
  }

  MemoryImage image_;
  std::string bytes_;
};

TEST_F(SnapshotView, ShowsTheDiskOfTheOneThatIsNamed) {
  expect_disk({.id = "1"}, 32 * kKib, 1);
  expect_disk({.name = "1"}, 128 * kKib, 2);
  expect_disk({.id = "2", .name = "1"}, 128 * kKib, 2);
  expect_disk({.id_or_name = "a"}, 32 * kKib, 1);
  // An id goes before a name.
  expect_disk({.id_or_name = "1"}, 32 * kKib, 1);
  expect_disk({.id_or_name = "2"}, 128 * kKib, 2);
}

TEST_F(SnapshotView, RefusesWhatIsNotThere) {
  for (const SnapshotChoice& choice :
       {SnapshotChoice{.id = "3"}, SnapshotChoice{.id = "1", .name = "1"},
        SnapshotChoice{.name = "2"}, SnapshotChoice{.id_or_name = "b"}}) {
    EXPECT_TRUE(absl::IsNotFound(open(choice).status()));
  }
}

TEST_F(SnapshotView, IsReadOnlyForGood) {
  EXPECT_TRUE(
      absl::IsInvalidArgument(open({.id = "1"}, /*read_only=*/false).status()));
  const auto view = open({.id = "1"});
  ASSERT_TRUE(view.ok());
  EXPECT_TRUE(
      absl::IsFailedPrecondition((*view)->reopen({.read_only = false})));
}

// Its disk's length and its L1 table's come from the file.
TEST_F(SnapshotView, DoesNotTrustTheTable) {
  const uint64_t table = testing::get_big64(bytes_, kSnapshotsOffsetOffset);
  const uint64_t disk_size =
      table + kSnapshotExtraOffset + kSnapshotExtraDiskSizeOffset;
  const std::string sound = bytes_;
  for (const uint64_t size : {64 * kKib + 1, UINT64_MAX}) {
    bytes_ = sound;
    testing::set_big64(&bytes_, disk_size, size);
    EXPECT_TRUE(absl::IsDataLoss(open({.id = "1"}).status())) << size;
  }
  for (const uint64_t offset : {uint64_t{1} << 40, uint64_t{513}}) {
    bytes_ = sound;
    testing::set_big64(&bytes_, table + kSnapshotL1OffsetOffset, offset);
    EXPECT_TRUE(absl::IsDataLoss(open({.id = "1"}).status())) << offset;
  }
}

}  // namespace
}  // namespace spindle::qcow2

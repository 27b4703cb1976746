// What has the image to itself (a change of the length, a snapshot, a check, a
// bitmap's change) beside requests and beside each other.  A thread is stopped
// just before a chosen access to the file, others come, it goes on.  And how
// often the file is touched while everybody waits.
#include <chrono>
#include <cstdio>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "threadpool/default_executor.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kSize = 64 * kCluster;
constexpr ByteRange kSizeField{24, 8};  // qcow2 specification, "Header"

constexpr ByteRange cluster(uint64_t index) {
  return {index * kCluster, kCluster};
}

template <typename Call>
auto in_background(Call call) {
  return std::async(std::launch::async, std::move(call));
}
// Time enough for a thread to do what it must not do yet.
template <typename Future>
bool is_done_soon(Future& future) {
  return future.wait_for(std::chrono::milliseconds(30)) ==
         std::future_status::ready;
}

SnapshotInfo named(const char* name) {
  SnapshotInfo wanted;
  wanted.name = name;
  return wanted;
}

MemoryImageOptions image_options(uint64_t size_bytes = kSize) {
  MemoryImageOptions options;
  options.size_bytes = size_bytes;
  options.create = {{"cluster_size", absl::StrCat(kCluster)}};
  return options;
}

// A device over an image in memory.
struct DeviceOverImage {
  explicit DeviceOverImage(MemoryImageOptions options = image_options())
      : image(std::move(options)),
        executor(make_executor({.width = 4, .name = "test"})) {
    auto made = BlockDevice::create(
        std::shared_ptr<BlockDriver>(&image.driver(), [](BlockDriver*) {}),
        executor.get(), {});
    EXPECT_TRUE(made.ok()) << made.status();
    device = *std::move(made);
  }

  absl::Status write(ByteRange range, uint8_t value) {
    std::string data(range.length, static_cast<char>(value));
    return device->write(IoVector(data.data(), data.size()),
                         Sector::from_byte_offset(range.offset));
  }
  absl::StatusOr<std::string> read(ByteRange range) {
    std::string data(range.length, '\xee');
    const absl::Status status =
        device->read(IoVector(data.data(), data.size()),
                     Sector::from_byte_offset(range.offset));
    if (!status.ok()) return status;
    return data;
  }
  absl::Status close_and_check() {
    const absl::Status status = device->close();
    return status.ok()
               ? check_image_bytes(image.memory().content(), Leaks::kForbidden)
               : status;
  }

  MemoryImage image;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<BlockDevice> device;
};

// ---- Length against requests, at the driver ---------------------------------

// Who is inside finishes first, on the disk as it was; who comes while the gate
// is closed finds the disk as it became, and holds nothing meanwhile.
TEST(LengthInterleaving, AShrinkWaitsForWhoIsInsideAndTurnsBackWhoComesLater) {
  for (const bool writes : {false, true}) {
    MemoryImage image(image_options());
    ASSERT_TRUE(image.write({0, kSize}, 1).ok());
    ASSERT_TRUE(image.flush().ok());
    const ByteRange last = cluster(63);
    const auto in_transfer = image.file().stop_at(
        {.purpose = writes ? Purpose::kWriteAio : Purpose::kReadAio});
    const auto in_switch = image.file().stop_at(
        {.purpose = Purpose::kHeaderUpdate, .range = kSizeField});
    auto inside = in_background([&] {
      return writes ? image.write(last, 2)
                    : read_bytes(image.driver(), last).status();
    });
    in_transfer->wait_until_reached();
    auto shrink = in_background([&] {
      return image.driver().set_length(kSize / 2, SetLengthMode::kExact);
    });
    EXPECT_FALSE(is_done_soon(shrink));
    EXPECT_FALSE(in_switch->reached()) << "cut off under a request";
    in_transfer->resume();
    EXPECT_EQ(inside.get(), absl::OkStatus());
    in_switch->wait_until_reached();
    auto late = in_background([&] { return image.write(last, 3); });
    auto within = in_background([&] { return image.write(cluster(0), 4); });
    EXPECT_FALSE(is_done_soon(late));
    EXPECT_FALSE(is_done_soon(within));
    in_switch->resume();
    EXPECT_EQ(shrink.get(), absl::OkStatus());
    EXPECT_TRUE(absl::IsOutOfRange(late.get()));
    EXPECT_EQ(within.get(), absl::OkStatus());
    ASSERT_TRUE(image.driver().set_length(kSize, SetLengthMode::kExact).ok());
    EXPECT_TRUE(image.reads_as({kSize / 2, kSize / 2}, 0));
    EXPECT_TRUE(image.reads_as(cluster(0), 4));
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

TEST(LengthInterleaving, AWriteDuringAGrowthFindsTheLongerDisk) {
  MemoryImage image(image_options());
  const auto in_switch = image.file().stop_at(
      {.purpose = Purpose::kHeaderUpdate, .range = kSizeField});
  auto growth = in_background([&] {
    return image.driver().set_length(2 * kSize, SetLengthMode::kExact);
  });
  in_switch->wait_until_reached();
  auto write = in_background([&] { return image.write(cluster(100), 5); });
  EXPECT_FALSE(is_done_soon(write));
  in_switch->resume();
  EXPECT_EQ(growth.get(), absl::OkStatus());
  EXPECT_EQ(write.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(100), 5));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// Who wants the disk longer compares when it has the disk to itself: else it
// would cut off what a growth in flight has gained.
TEST(LengthInterleaving, GrowOnlyComparesWithAGrowthInFlight) {
  MemoryImage image(image_options());
  const auto in_switch = image.file().stop_at(
      {.purpose = Purpose::kHeaderUpdate, .range = kSizeField});
  auto growth = in_background([&] {
    return image.driver().set_length(2 * kSize, SetLengthMode::kExact);
  });
  in_switch->wait_until_reached();
  auto grow_only = in_background([&] {
    return image.driver().set_length(kSize + kCluster,
                                     SetLengthMode::kGrowOnly);
  });
  EXPECT_FALSE(is_done_soon(grow_only));
  in_switch->resume();
  EXPECT_EQ(growth.get(), absl::OkStatus());
  EXPECT_EQ(grow_only.get(), absl::OkStatus());
  EXPECT_EQ(image.driver().length_bytes(), 2 * kSize);
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- Operations beside each other, through the device -----------------------

// A resize goes ahead of a check that is under way, and the check says so; one
// that comes later waits.
TEST(Operations, AResizeWaitsForAPieceOfACheckAndACheckForAResize) {
  DeviceOverImage over;
  ASSERT_TRUE(over.write({0, kSize}, 1).ok());
  const auto expect_sound = [](const absl::StatusOr<CheckResult>& found) {
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->corruptions + found->leaks + found->check_errors, 0u);
  };
  // Purposes of a check's own reads; the caches have all that the device needs.
  const auto in_check = over.image.file().stop_at(
      {.purpose = Purpose::kReftableLoad, .kind = AccessKind::kRead});
  auto check = in_background([&] { return over.image.driver().check({}); });
  in_check->wait_until_reached();
  auto shrink =
      in_background([&] { return over.device->set_length(kSize / 2); });
  EXPECT_FALSE(is_done_soon(shrink));
  in_check->resume();
  const auto given_up = check.get();
  EXPECT_TRUE(absl::IsAborted(given_up.status())) << given_up.status();
  EXPECT_EQ(shrink.get(), absl::OkStatus());
  expect_sound(over.image.driver().check({}));

  // One after the other: a repair beside another check would change the image
  // under it.
  CheckOptions repair;
  repair.fix_leaks = repair.fix_errors = true;
  uint64_t length = kSize / 2;
  for (const CheckOptions& options : {CheckOptions(), repair}) {
    length += kSize / 4;
    const auto in_switch = over.image.file().stop_at(
        {.purpose = Purpose::kHeaderUpdate, .range = kSizeField});
    auto growth =
        in_background([&] { return over.device->set_length(length); });
    in_switch->wait_until_reached();
    auto waiting =
        in_background([&] { return over.image.driver().check(options); });
    EXPECT_FALSE(is_done_soon(waiting));
    in_switch->resume();
    EXPECT_EQ(growth.get(), absl::OkStatus());
    expect_sound(waiting.get());
  }
  EXPECT_EQ(*over.read(cluster(0)), std::string(kCluster, 1));
  EXPECT_EQ(*over.read(cluster(63)), std::string(kCluster, 0));
  EXPECT_EQ(over.close_and_check(), absl::OkStatus());
}

// A flush is in its sync; a snapshot and a resize wait for it, and for each
// other; requests of either length wait for the resize.
TEST(Operations, SnapshotBesideResizeBesideFlush) {
  DeviceOverImage over;
  ASSERT_TRUE(over.write({0, kSize}, 1).ok());
  const auto in_flush =
      over.image.file().stop_at({.purpose = Purpose::kFlushToDisk});
  auto flush = in_background([&] { return over.device->flush(); });
  in_flush->wait_until_reached();
  auto snapshot = in_background(
      [&] { return over.image.driver().create_snapshot(named("s")); });
  auto shrink =
      in_background([&] { return over.device->set_length(kSize / 2); });
  EXPECT_FALSE(is_done_soon(snapshot));
  EXPECT_FALSE(is_done_soon(shrink));
  auto beyond = in_background([&] { return over.write(cluster(40), 2); });
  auto within = in_background([&] { return over.write(cluster(4), 2); });
  EXPECT_FALSE(is_done_soon(beyond));
  in_flush->resume();
  EXPECT_EQ(flush.get(), absl::OkStatus());
  const auto made = snapshot.get();
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(shrink.get(), absl::OkStatus());
  EXPECT_TRUE(absl::IsOutOfRange(beyond.get()));
  EXPECT_EQ(within.get(), absl::OkStatus());
  EXPECT_EQ(over.device->length_bytes(), kSize / 2);

  // The snapshot came before the shrink or after it, but not in between.
  const uint64_t kept = made->disk_size_bytes;
  EXPECT_TRUE(kept == kSize || kept == kSize / 2) << kept;
  std::vector<uint64_t> told;
  over.device->on_length_change(
      [&](uint64_t length) { told.push_back(length); });
  ASSERT_EQ(over.device->apply_snapshot("s"), absl::OkStatus());
  EXPECT_EQ(over.device->length_bytes(), kept);
  if (kept == kSize) {
    EXPECT_EQ(told, std::vector<uint64_t>{kSize});
    EXPECT_EQ(*over.read(cluster(63)), std::string(kCluster, 1));
  }
  EXPECT_EQ(*over.read(cluster(5)), std::string(kCluster, 1));
  EXPECT_EQ(over.close_and_check(), absl::OkStatus());
}

// A snapshot is of the disk before or after a resize, whoever has closed the
// gate first.
TEST(Operations, AResizeWaitsForASnapshotThatIsBeingMade) {
  DeviceOverImage over;
  ASSERT_TRUE(over.write({0, kSize}, 1).ok());
  const auto in_snapshot =
      over.image.file().stop_at({.purpose = Purpose::kSnapshotUpdate});
  auto snapshot = in_background(
      [&] { return over.image.driver().create_snapshot(named("s")); });
  in_snapshot->wait_until_reached();
  auto growth =
      in_background([&] { return over.device->set_length(2 * kSize); });
  auto bitmap = in_background([&] {
    NewDirtyBitmap wanted;
    wanted.name = "b";
    return over.image.driver().add_bitmap(wanted);
  });
  EXPECT_FALSE(is_done_soon(growth));
  EXPECT_FALSE(is_done_soon(bitmap));
  in_snapshot->resume();
  const auto made = snapshot.get();
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->disk_size_bytes, kSize);
  EXPECT_EQ(growth.get(), absl::OkStatus());
  EXPECT_EQ(bitmap.get(), absl::OkStatus());
  const auto follower = over.image.driver().find_bitmap("b");
  ASSERT_TRUE(follower.ok());
  EXPECT_EQ((*follower)->length_bytes(), 2 * kSize);
  EXPECT_EQ(over.close_and_check(), absl::OkStatus());
}

// What is submitted while a snapshot of a longer disk is applied waits, and may
// be as long as that.
TEST(Operations, RequestsDuringAnApplyHaveTheLengthOfTheSnapshot) {
  DeviceOverImage over;
  ASSERT_TRUE(over.write({0, kSize}, 1).ok());
  ASSERT_TRUE(over.image.driver().create_snapshot(named("s")).ok());
  ASSERT_TRUE(over.device->set_length(kSize / 2).ok());
  const auto in_switch = over.image.file().stop_at(
      {.purpose = Purpose::kHeaderUpdate, .range = kSizeField});
  auto apply = in_background([&] { return over.device->apply_snapshot("s"); });
  in_switch->wait_until_reached();
  auto read = in_background([&] { return over.read(cluster(63)); });
  EXPECT_FALSE(is_done_soon(read));
  in_switch->resume();
  EXPECT_EQ(apply.get(), absl::OkStatus());
  const auto content = read.get();
  ASSERT_TRUE(content.ok()) << content.status();
  EXPECT_EQ(*content, std::string(kCluster, 1));
  EXPECT_EQ(over.close_and_check(), absl::OkStatus());
}

// ---- How long everybody waits -----------------------------------------------

// Accesses to the file while the gate is closed: in an image with `clusters`
// clusters of data, flushed, of a disk that has room for many more.
struct Cost {
  uint64_t accesses;
  uint64_t syncs;
};
Cost cost_of(uint64_t clusters,
             const std::function<absl::Status(MemoryImage&)>& prepare,
             const std::function<absl::Status(MemoryImage&)>& operation) {
  MemoryImage image(image_options(8192 * kCluster));
  EXPECT_TRUE(image.write({0, clusters * kCluster}, 1).ok());
  EXPECT_EQ(prepare(image), absl::OkStatus());
  EXPECT_TRUE(image.flush().ok());
  image.file().reset_counts();
  EXPECT_EQ(operation(image), absl::OkStatus());
  const Cost cost{image.file().total_count(),
                  image.file().count(AccessKind::kFlush)};
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  return cost;
}

struct Closing {
  const char* name;
  // At most so often, whatever the image has; and for each L2 table in use.
  uint64_t accesses;
  uint64_t accesses_per_table;
  uint64_t syncs;
  std::function<absl::Status(MemoryImage&)> prepare;
  std::function<absl::Status(MemoryImage&)> operation;
};

class ClosedGate : public ::testing::TestWithParam<Closing> {};

std::vector<Closing> closings() {
  const auto nothing = [](MemoryImage&) { return absl::OkStatus(); };
  const auto snapshot = [](MemoryImage& image) {
    return image.driver().create_snapshot(named("s")).status();
  };
  const auto bitmap = [](MemoryImage& image) {
    NewDirtyBitmap wanted;
    wanted.name = "b";
    return image.driver().add_bitmap(wanted);
  };
  const auto set_length = [](uint64_t length_bytes) {
    return [length_bytes](MemoryImage& image) {
      return image.driver().set_length(length_bytes, SetLengthMode::kExact);
    };
  };
  // As it is after an earlier life: in the file, too.
  const auto stored_bitmap = [bitmap](MemoryImage& image) {
    absl::Status status = bitmap(image);
    if (status.ok()) status = image.close();
    return status.ok() ? image.open() : status;
  };
  return {
      {"Growth", 6, 0, 4, set_length(8191 * kCluster),
       set_length(8192 * kCluster)},
      {"GrowthOfTheL1Table", 15, 0, 8, nothing, set_length(8193 * kCluster)},
      {"Shrink", 6, 0, 5, nothing, set_length(8191 * kCluster)},
      {"ShrinkThatFrees", 16, 4, 12, nothing, set_length(100 * kCluster)},
      {"SnapshotCreated", 12, 2, 5, nothing, snapshot},
      {"SnapshotDeleted", 12, 3, 7, snapshot,
       [](MemoryImage& image) { return image.driver().delete_snapshot("s"); }},
      {"SnapshotApplied", 10, 2, 6, snapshot,
       [](MemoryImage& image) { return image.driver().apply_snapshot("s"); }},
      {"BitmapAdded", 1, 0, 0, nothing, bitmap},
      {"BitmapEnabled", 0, 0, 0, stored_bitmap,
       [](MemoryImage& image) {
         return image.driver().enable_bitmap("b", false);
       }},
      {"BitmapCleared", 0, 0, 0, stored_bitmap,
       [](MemoryImage& image) { return image.driver().clear_bitmap("b"); }},
      {"BitmapRemoved", 16, 0, 8, stored_bitmap,
       [](MemoryImage& image) { return image.driver().remove_bitmap("b"); }},
      {"Amended", 16, 0, 2, nothing,
       [](MemoryImage& image) {
         AmendOptions options;
         options.changes["lazy_refcounts"] = "on";
         return image.driver().amend(options);
       }},
  };
}
INSTANTIATE_TEST_SUITE_P(Operations, ClosedGate,
                         ::testing::ValuesIn(closings()), [](const auto& info) {
                           return std::string(info.param.name);
                         });

// An L2 table maps 512 clusters here.
TEST_P(ClosedGate, TouchesTheFileAFewTimesOnly) {
  for (const uint64_t tables : {1, 8}) {
    const Closing& closing = GetParam();
    const Cost cost = cost_of(tables * 512, closing.prepare, closing.operation);
    RecordProperty(absl::StrCat("accesses_of_", tables), cost.accesses);
    std::printf("%s, %d L2 tables: %d accesses, %d of them syncs\n",
                closing.name, static_cast<int>(tables),
                static_cast<int>(cost.accesses), static_cast<int>(cost.syncs));
    EXPECT_LE(cost.accesses,
              closing.accesses + tables * closing.accesses_per_table);
    EXPECT_LE(cost.syncs, closing.syncs);
  }
}

}  // namespace
}  // namespace spindle::testing

// Requests that meet in one cluster of an image with subclusters.  A thread is
// stopped just before its data go to the file; others do what would hurt; it
// goes on.
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "engine/io_vector.h"
#include "engine/sector.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 65536;
constexpr uint64_t kSub = kCluster / 32;
constexpr uint8_t kBelow = 'b';

// Subcluster `index` of the disk, and a sector in it.
constexpr ByteRange sub(uint64_t index, uint64_t count = 1) {
  return {index * kSub, count * kSub};
}
constexpr ByteRange sector(uint64_t sub_index, uint64_t index) {
  return {sub_index * kSub + index * 512, 512};
}

MemoryImageOptions image_options(bool with_backing) {
  MemoryImageOptions options;
  options.size_bytes = 8 * kCluster;
  options.create = {{"extended_l2", "on"}};
  if (with_backing)
    options.backing = std::string(options.size_bytes, char{kBelow});
  return options;
}

std::future<absl::Status> in_background(std::function<absl::Status()> call) {
  return std::async(std::launch::async, std::move(call));
}

bool waits(std::future<absl::Status>& call) {
  return call.wait_for(std::chrono::milliseconds(100)) ==
         std::future_status::timeout;
}

// A write that stands before its transfer.
struct StoppedWrite {
  std::unique_ptr<ObservingDriver::Stop> stop;
  std::future<absl::Status> done;

  absl::Status finish() {
    stop->resume();
    return done.get();
  }
};

StoppedWrite stopped_write(MemoryImage* image, ByteRange range, uint8_t value) {
  StoppedWrite write;
  write.stop = image->file().stop_at({.purpose = Purpose::kClusterAlloc});
  write.done = in_background([=] { return image->write(range, value); });
  write.stop->wait_until_reached();
  return write;
}

void expect_good(MemoryImage* image) {
  EXPECT_EQ(image->close_and_check(), absl::OkStatus());
}

TEST(Subclusters, FirstWritesIntoOneOwnClusterGoSideBySide) {
  MemoryImage image(image_options(/*with_backing=*/true));
  ASSERT_TRUE(image.write(sub(0), 1).ok());
  const auto host = image.host_of(0);
  StoppedWrite first = stopped_write(&image, sector(3, 1), 2);
  StoppedWrite second = stopped_write(&image, sector(7, 2), 3);
  // A third one, one in place, and zeroes.
  EXPECT_TRUE(image.write(sector(9, 0), 4).ok());
  EXPECT_TRUE(image.write(sector(0, 1), 5).ok());
  EXPECT_TRUE(image.driver().write_zeroes(sub(11, 2), {}).ok());
  EXPECT_TRUE(image.reads_as(sub(3), kBelow));
  // The later one publishes first.
  EXPECT_TRUE(second.finish().ok());
  EXPECT_TRUE(first.finish().ok());

  const auto check = [&] {
    EXPECT_TRUE(image.reads_as(sector(0, 0), 1));
    EXPECT_TRUE(image.reads_as(sector(0, 1), 5));
    EXPECT_TRUE(image.reads_as(sub(1, 2), kBelow));
    EXPECT_TRUE(image.reads_as(sector(3, 0), kBelow));
    EXPECT_TRUE(image.reads_as(sector(3, 1), 2));
    EXPECT_TRUE(image.reads_as(sector(3, 2), kBelow));
    EXPECT_TRUE(image.reads_as(sector(7, 2), 3));
    EXPECT_TRUE(image.reads_as(sector(9, 0), 4));
    EXPECT_TRUE(image.reads_as(sector(9, 1), kBelow));
    EXPECT_TRUE(image.reads_as(sub(11, 2), 0));
    EXPECT_TRUE(image.reads_as(sub(13), kBelow));
  };
  check();
  for (const uint64_t index : {3, 7, 9})
    EXPECT_EQ(image.host_of(index * kSub), *host + index * kSub);
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open().ok());
  check();
  expect_good(&image);
}

TEST(Subclusters, FirstWritesIntoOneSubclusterWaitForEachOther) {
  MemoryImage image(image_options(/*with_backing=*/true));
  ASSERT_TRUE(image.write(sub(0), 1).ok());
  StoppedWrite first = stopped_write(&image, sector(5, 0), 2);
  auto second = in_background([&] { return image.write(sector(5, 3), 3); });
  EXPECT_TRUE(waits(second));
  EXPECT_TRUE(first.finish().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_TRUE(image.reads_as(sector(5, 0), 2));
  EXPECT_TRUE(image.reads_as(sector(5, 1), kBelow));
  EXPECT_TRUE(image.reads_as(sector(5, 3), 3));
  expect_good(&image);
}

// Over a backing file, one allocates and the other waits for the place.
TEST(Subclusters, FirstWritesIntoANewClusterFillOne) {
  MemoryImage image(image_options(/*with_backing=*/true));
  StoppedWrite first = stopped_write(&image, sector(2, 0), 1);
  auto second = in_background([&] { return image.write(sector(20, 1), 2); });
  EXPECT_TRUE(waits(second));
  EXPECT_TRUE(first.finish().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_TRUE(image.reads_as(sector(2, 0), 1));
  EXPECT_TRUE(image.reads_as(sector(2, 1), kBelow));
  EXPECT_TRUE(image.reads_as(sector(20, 0), kBelow));
  EXPECT_TRUE(image.reads_as(sector(20, 1), 2));
  EXPECT_TRUE(image.reads_as(sub(3, 17), kBelow));
  EXPECT_EQ(*image.host_of(20 * kSub) - 20 * kSub,
            *image.host_of(2 * kSub) - 2 * kSub);
  expect_good(&image);
}

// Without one, the cluster reads as zeroes, and others join.
TEST(Subclusters, WritersJoinTheOneWhoAllocates) {
  MemoryImage image(image_options(/*with_backing=*/false));
  StoppedWrite owner = stopped_write(&image, sector(2, 0), 1);
  EXPECT_TRUE(image.write(sector(9, 1), 2).ok());
  EXPECT_TRUE(image.write(sector(2, 3), 3).ok());
  // Published, but for what the owner writes.
  EXPECT_TRUE(image.reads_as(sector(9, 1), 2));
  EXPECT_TRUE(image.reads_as(sector(2, 3), 3));
  EXPECT_TRUE(image.reads_as(sub(3, 6), 0));
  EXPECT_FALSE(image.driver()
                   .block_status(sub(3, 6), BlockStatusScope::kThisLayer)
                   ->allocated);
  EXPECT_TRUE(owner.finish().ok());
  EXPECT_TRUE(image.reads_as(sector(2, 0), 1));
  EXPECT_TRUE(image.reads_as(sector(2, 1), 0));
  EXPECT_TRUE(image.reads_as(sector(2, 3), 3));
  EXPECT_TRUE(image.reads_as(sector(9, 0), 0));
  expect_good(&image);
}

// The cluster has a place now, and a joiner still fills a subcluster that does
// not say so.
TEST(Subclusters, NobodyPadsOverAWriterWhoJoined) {
  MemoryImage image(image_options(/*with_backing=*/false));
  StoppedWrite owner = stopped_write(&image, sector(2, 0), 1);
  // On its way in the page cache, so to speak: written, not yet published.
  StoppedWrite joiner = stopped_write(&image, sector(9, 1), 2);
  EXPECT_TRUE(owner.finish().ok());
  StoppedWrite late = stopped_write(&image, sector(9, 3), 3);
  EXPECT_TRUE(joiner.finish().ok());
  EXPECT_TRUE(late.finish().ok());
  EXPECT_TRUE(image.reads_as(sector(9, 1), 2));
  EXPECT_TRUE(image.reads_as(sector(9, 3), 3));
  EXPECT_TRUE(image.reads_as(sector(9, 0), 0));
  expect_good(&image);
}

TEST(Subclusters, DiscardWaitsForWritersWhoJoined) {
  MemoryImage image(image_options(/*with_backing=*/false));
  StoppedWrite owner = stopped_write(&image, sector(2, 0), 1);
  StoppedWrite joiner = stopped_write(&image, sector(9, 1), 2);
  EXPECT_TRUE(owner.finish().ok());
  auto discard = in_background([&] { return image.discard({0, kCluster}); });
  EXPECT_TRUE(waits(discard));
  EXPECT_TRUE(joiner.finish().ok());
  EXPECT_TRUE(discard.get().ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  expect_good(&image);
}

// One that fails leaves its subcluster as it was, and the others theirs.
TEST(Subclusters, AFailedOwnerTakesNothingFromThoseWhoJoined) {
  MemoryImage image(image_options(/*with_backing=*/false));
  ASSERT_TRUE(image.write(sub(32, 32), 9).ok());
  // The next free cluster follows.
  const uint64_t host = *image.host_of(kCluster) + kCluster;
  image.file().fail_at({.purpose = Purpose::kClusterAlloc,
                        .range = ByteRange{host + 2 * kSub, kSub}},
                       EIO);
  StoppedWrite owner = stopped_write(&image, sub(2), 1);
  EXPECT_TRUE(image.write(sub(9), 2).ok());
  EXPECT_FALSE(owner.finish().ok());
  EXPECT_EQ(image.host_of(9 * kSub), host + 9 * kSub);
  EXPECT_TRUE(image.reads_as(sub(2), 0));
  EXPECT_TRUE(image.reads_as(sub(9), 2));
  expect_good(&image);
}

TEST(Subclusters, FirstWritesIntoASharedClusterCopyItOnce) {
  MemoryImage image(image_options(/*with_backing=*/true));
  ASSERT_TRUE(image.write(sub(4, 4), 1).ok());
  SnapshotInfo wanted;
  wanted.name = "kept";
  ASSERT_TRUE(image.driver().create_snapshot(wanted).ok());
  const auto shared = image.host_of(4 * kSub);
  StoppedWrite first = stopped_write(&image, sector(6, 0), 2);
  auto second = in_background([&] { return image.write(sector(30, 0), 3); });
  EXPECT_TRUE(waits(second));
  EXPECT_TRUE(first.finish().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_NE(image.host_of(4 * kSub), shared);
  EXPECT_TRUE(image.reads_as(sub(4, 2), 1));
  EXPECT_TRUE(image.reads_as(sector(6, 0), 2));
  EXPECT_TRUE(image.reads_as(sector(6, 1), 1));
  EXPECT_TRUE(image.reads_as(sub(8, 22), kBelow));
  EXPECT_TRUE(image.reads_as(sector(30, 0), 3));
  ASSERT_TRUE(image.driver().apply_snapshot("kept").ok());
  EXPECT_TRUE(image.reads_as(sub(4, 4), 1));
  EXPECT_TRUE(image.reads_as(sub(30), kBelow));
  expect_good(&image);
}

// The cluster went while a writer took it for its own.
TEST(Subclusters, AWriteAfterADiscardFindsANewCluster) {
  MemoryImage image(image_options(/*with_backing=*/true));
  ASSERT_TRUE(image.write(sub(0, 32), 1).ok());
  ASSERT_TRUE(image.driver().write_zeroes(sub(5, 2), {}).ok());
  StoppedWrite first = stopped_write(&image, sector(5, 0), 2);
  auto discard = in_background([&] { return image.discard({0, kCluster}); });
  EXPECT_TRUE(waits(discard));
  auto second = in_background([&] { return image.write(sector(6, 0), 3); });
  EXPECT_TRUE(first.finish().ok());
  EXPECT_TRUE(discard.get().ok());
  EXPECT_TRUE(second.get().ok());
  EXPECT_TRUE(image.write(sector(8, 0), 4).ok());
  EXPECT_TRUE(image.reads_as(sub(0, 5), 0));
  EXPECT_TRUE(image.reads_as(sector(8, 0), 4));
  EXPECT_TRUE(image.reads_as(sector(8, 1), 0));
  expect_good(&image);
}

// ---- Zeroed subclusters and their host cluster ------------------------------

// Takes what it can get: tables and data of other guest clusters.
void take_clusters(MemoryImage* image) {
  for (uint64_t i = 2; i < 8; ++i)
    EXPECT_TRUE(image->write({i * kCluster, kCluster}, 40 + i).ok());
}
void expect_taken(MemoryImage* image) {
  for (uint64_t i = 2; i < 8; ++i)
    EXPECT_TRUE(image->reads_as({i * kCluster, kCluster}, 40 + i));
}

// Whoever would free the host cluster waits for a write into a subcluster that
// was zeroed; it cannot land in a cluster that has become somebody else's.
TEST(SubclustersZeroed, AWriteOnItsWayKeepsTheHostCluster) {
  const std::function<absl::Status(MemoryImage*)> drops[] = {
      [](MemoryImage* image) { return image->discard({0, kCluster}); },
      [](MemoryImage* image) {
        return image->driver().write_zeroes({0, kCluster}, {.may_unmap = true});
      },
      [](MemoryImage* image) {
        std::string bytes(kCluster, 9);
        return image->driver().write_compressed(
            IoVector(bytes.data(), bytes.size()), Sector(0));
      }};
  for (const auto& drop : drops) {
    MemoryImage image(image_options(/*with_backing=*/true));
    ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
    ASSERT_TRUE(image.driver().write_zeroes(sub(3), {}).ok());
    ASSERT_TRUE(image.flush().ok());
    const auto host = image.host_of(0);
    StoppedWrite write = stopped_write(&image, sector(3, 1), 2);
    auto dropped = in_background([&] { return drop(&image); });
    EXPECT_TRUE(waits(dropped));
    EXPECT_TRUE(image.flush().ok());
    take_clusters(&image);
    for (uint64_t i = 2; i < 8; ++i)
      EXPECT_NE(image.host_of(i * kCluster), host);
    EXPECT_TRUE(write.finish().ok());
    EXPECT_TRUE(dropped.get().ok());
    EXPECT_TRUE(image.flush().ok());
    expect_taken(&image);
    expect_good(&image);
  }
}

// A write from before the zeroes goes on after them, after a new write to the
// same subcluster, and after the discard of the whole cluster.
TEST(SubclustersZeroed, AWriteFromBeforeKeepsTheHostCluster) {
  MemoryImage image(image_options(/*with_backing=*/true));
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(image.flush().ok());
  const auto host = image.host_of(0);
  const auto stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto early = in_background([&] { return image.write(sector(3, 0), 2); });
  stop->wait_until_reached();
  ASSERT_TRUE(image.driver().write_zeroes(sub(3), {}).ok());
  ASSERT_TRUE(image.write(sector(3, 1), 3).ok());
  EXPECT_TRUE(image.reads_as(sector(3, 0), 0));
  EXPECT_EQ(image.host_of(3 * kSub), *host + 3 * kSub);
  ASSERT_TRUE(image.discard({0, kCluster}).ok());
  ASSERT_TRUE(image.flush().ok());
  take_clusters(&image);
  ASSERT_TRUE(image.flush().ok());
  for (uint64_t i = 2; i < 8; ++i) EXPECT_NE(image.host_of(i * kCluster), host);
  stop->resume();
  EXPECT_TRUE(early.get().ok());
  expect_taken(&image);
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  expect_good(&image);
}

// The same without subclusters: a zero cluster that kept its host cluster.
TEST(ZeroAllocated, AWriteOnItsWayKeepsTheHostCluster) {
  MemoryImageOptions options = image_options(/*with_backing=*/true);
  options.create["extended_l2"] = "off";
  MemoryImage image(options);
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(image.driver().write_zeroes({0, kCluster}, {}).ok());
  ASSERT_TRUE(image.flush().ok());
  StoppedWrite write = stopped_write(&image, sector(3, 1), 2);
  auto dropped = in_background([&] { return image.discard({0, kCluster}); });
  EXPECT_TRUE(waits(dropped));
  EXPECT_TRUE(image.flush().ok());
  take_clusters(&image);
  EXPECT_TRUE(write.finish().ok());
  EXPECT_TRUE(dropped.get().ok());
  EXPECT_TRUE(image.flush().ok());
  expect_taken(&image);
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  expect_good(&image);
}

}  // namespace
}  // namespace spindle::testing

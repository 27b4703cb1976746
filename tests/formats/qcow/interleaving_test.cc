// Requests that meet at the worst moment.  A thread is stopped just before a
// chosen access to the image's file; others do what would hurt; it goes on.
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "formats/qcow/qcow_driver.h"
#include "formats/qcow/qcow_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/life_driver.h"
#include "tests/formats/qcow2/memory_image.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

constexpr ByteRange cluster(uint64_t index) {
  return {index * kCluster, kCluster};
}
constexpr ByteRange sector(uint64_t offset) { return {offset, 512}; }

MemoryImageOptions options_of(const QcowShape& shape = {}) {
  MemoryImageOptions options;
  options.format = qcow::qcow_format();
  options.size_bytes = shape.size_bytes;
  options.bytes = new_qcow(shape);
  if (!shape.backing_filename.empty())
    options.backing = std::string(shape.size_bytes, 'b');
  return options;
}

std::future<absl::Status> in_background(std::function<absl::Status()> call) {
  return std::async(std::launch::async, std::move(call));
}

absl::Status write_compressed(MemoryImage& image, ByteRange range, char value) {
  std::string data(range.length, value);
  return image.driver().write_compressed(
      IoVector(data.data(), data.size()),
      Sector::from_byte_offset(range.offset));
}

// ---- First writes -----------------------------------------------------------

TEST(QcowFirstWrites, ToDifferentClustersGoSideBySide) {
  for (const bool has_backing : {false, true}) {
    MemoryImage image(options_of({.backing_filename = has_backing ? "b" : ""}));
    ASSERT_EQ(image.write(cluster(20), 1), absl::OkStatus());
    const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
    auto first = in_background([&] { return image.write(sector(512), 2); });
    stop->wait_until_reached();
    EXPECT_EQ(image.write(sector(kCluster), 3), absl::OkStatus());
    EXPECT_EQ(write_compressed(image, cluster(2), 4), absl::OkStatus());
    EXPECT_EQ(image.flush(), absl::OkStatus());
    EXPECT_TRUE(image.reads_as(sector(512), has_backing ? 'b' : 0));
    stop->resume();
    EXPECT_EQ(first.get(), absl::OkStatus());
    EXPECT_TRUE(image.reads_as(sector(512), 2));
    EXPECT_TRUE(image.reads_as(sector(kCluster), 3));
    EXPECT_TRUE(image.reads_as(cluster(2), 4));
    EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// Nothing need be copied around them.
TEST(QcowFirstWrites, LaterOnesJoinTheFirst) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(20), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(sector(0), 2); });
  stop->wait_until_reached();
  EXPECT_EQ(image.write(sector(512), 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(512), 3)) << "published by who joined";
  EXPECT_EQ(image.write(sector(1024), 4), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(first.get(), absl::OkStatus());
  for (uint64_t i = 0; i < 3; ++i)
    EXPECT_TRUE(image.reads_as(sector(i * 512), static_cast<uint8_t>(2 + i)));
  EXPECT_TRUE(image.reads_as({3 * 512, kCluster - 3 * 512}, 0));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  // One cluster for all of them.
  EXPECT_EQ(image.memory().length_bytes(), 4 * kCluster);
}

TEST(QcowFirstWrites, OthersWaitWhereSomethingIsCopied) {
  MemoryImage image(options_of({.backing_filename = "b"}));
  ASSERT_EQ(image.write(cluster(20), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(sector(0), 2); });
  stop->wait_until_reached();
  auto second = in_background([&] { return image.write(sector(512), 3); });
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(50)),
            std::future_status::timeout);
  stop->resume();
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_EQ(second.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(0), 2));
  EXPECT_TRUE(image.reads_as(sector(512), 3));
  EXPECT_TRUE(image.reads_as({1024, kCluster - 1024}, 'b'));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(QcowFirstWrites, TheOwnersErrorIsNotThatOfThoseWhoJoined) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(20), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kClusterAlloc});
  auto first = in_background([&] { return image.write(sector(0), 2); });
  stop->wait_until_reached();
  EXPECT_EQ(image.write(sector(512), 3), absl::OkStatus());
  image.file().fail_at({.purpose = Purpose::kClusterAlloc}, ENOSPC);
  stop->resume();
  EXPECT_EQ(errno_of(first.get()), ENOSPC);
  EXPECT_TRUE(image.reads_as(sector(512), 3));
  EXPECT_TRUE(image.reads_as(sector(0), 0));
  EXPECT_EQ(image.write(sector(0), 4), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(0), 4));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(QcowFirstWrites, ACompressedOneWaitsForAnOverlappingOne) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(20), 1), absl::OkStatus());
  const auto stop =
      image.file().stop_at({.purpose = Purpose::kWriteCompressed});
  auto first =
      in_background([&] { return write_compressed(image, cluster(0), 2); });
  stop->wait_until_reached();
  auto second = in_background([&] { return image.write(sector(512), 3); });
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(50)),
            std::future_status::timeout);
  EXPECT_EQ(write_compressed(image, cluster(1), 5), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_EQ(second.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(0), 2));
  EXPECT_TRUE(image.reads_as(sector(512), 3));
  EXPECT_TRUE(image.reads_as(cluster(1), 5));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// Both need the same new table.
TEST(QcowFirstWrites, ATableIsMadeOnce) {
  const std::string bytes = new_qcow();
  MemoryImageOptions options = options_of();
  MemoryImage image(options);
  const auto stop = image.file().stop_at({.purpose = Purpose::kL2Load});
  auto first = in_background([&] { return image.write(cluster(0), 1); });
  stop->wait_until_reached();
  auto second = in_background([&] { return image.write(cluster(1), 2); });
  stop->resume();
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_EQ(second.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(0), 1));
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_EQ(image.memory().length_bytes(), 4 * kCluster);
}

// ---- Nobody waits who need not ----------------------------------------------

TEST(QcowNoWaiting, RequestsProceedWhileAFlushWaitsForTheDisk) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(0), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kFlushToDisk});
  auto flush = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  EXPECT_EQ(image.write(sector(0), 2), absl::OkStatus());
  EXPECT_EQ(image.write(cluster(1), 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(0), 2));
  EXPECT_TRUE(image.reads_as(cluster(1), 3));
  stop->resume();
  EXPECT_EQ(flush.get(), absl::OkStatus());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(QcowNoWaiting, RequestsProceedWhileAnotherTableIsRead) {
  QcowShape shape{.cluster_bits = 9, .l2_bits = 6};
  MemoryImage image(options_of(shape));
  ASSERT_EQ(image.write(sector(0), 1), absl::OkStatus());
  ASSERT_EQ(image.write(sector(100 * 1024), 2), absl::OkStatus());
  ASSERT_EQ(image.close(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  ASSERT_TRUE(image.reads_as(sector(0), 1));
  const auto stop = image.file().stop_at({.purpose = Purpose::kL2Load});
  auto read = in_background(
      [&] { return read_bytes(image.driver(), sector(100 * 1024)).status(); });
  stop->wait_until_reached();
  EXPECT_TRUE(image.reads_as(sector(0), 1));
  EXPECT_EQ(image.write(sector(0), 3), absl::OkStatus());
  EXPECT_EQ(image.write(sector(512), 4), absl::OkStatus());
  EXPECT_EQ(image.flush(), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(read.get(), absl::OkStatus());
}

TEST(QcowNoWaiting, OverwritesOfOneClusterGoSideBySide) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(0), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto first = in_background([&] { return image.write(sector(0), 2); });
  stop->wait_until_reached();
  EXPECT_EQ(image.write(sector(512), 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(512), 3));
  stop->resume();
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(sector(0), 2));
}

// Its old place is nobody else's, ever.
TEST(QcowNoWaiting, AReaderOfACompressedClusterKeepsIt) {
  MemoryImage image(options_of());
  ASSERT_EQ(write_compressed(image, cluster(0), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kReadCompressed});
  std::string found;
  auto read = in_background([&] {
    auto bytes = read_bytes(image.driver(), cluster(0));
    if (bytes.ok()) found = *bytes;
    return bytes.status();
  });
  stop->wait_until_reached();
  EXPECT_EQ(image.write(cluster(0), 2), absl::OkStatus());
  EXPECT_EQ(image.flush(), absl::OkStatus());
  for (uint64_t i = 1; i < 10; ++i)
    EXPECT_EQ(write_compressed(image, cluster(i), 'x'), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(read.get(), absl::OkStatus());
  EXPECT_EQ(found, std::string(kCluster, 1));
  EXPECT_TRUE(image.reads_as(cluster(0), 2));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- What is on disk, and when ----------------------------------------------

TEST(QcowOrder, DataAndLengthAreDurableBeforeMappings) {
  MemoryImage image(options_of());
  absl::Mutex mutex;
  std::vector<Purpose> accesses;
  image.file().set_hook([&](const Access& access) {
    absl::MutexLock lock(&mutex);
    accesses.push_back(access.purpose);
    return absl::OkStatus();
  });
  ASSERT_EQ(image.write(sector(512), 1), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  image.file().set_hook(nullptr);
  EXPECT_EQ(accesses,
            (std::vector<Purpose>{Purpose::kL2Load, Purpose::kClusterAlloc,
                                  Purpose::kSetLength, Purpose::kFlushToDisk,
                                  Purpose::kL2Update, Purpose::kL1Update,
                                  Purpose::kFlushToDisk}));
}

// A flush takes what is there when it begins.
TEST(QcowOrder, WhatComesDuringARoundIsTheNextOnes) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(0), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kL2Update});
  auto flush = in_background([&] { return image.flush(); });
  stop->wait_until_reached();
  ASSERT_EQ(image.write(cluster(1), 2), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(flush.get(), absl::OkStatus());
  const std::string after_one = image.memory().content();
  EXPECT_NE(get64(after_one, kCluster), 0u);
  EXPECT_EQ(get64(after_one, kCluster + 8), 0u);
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_NE(get64(image.memory().content(), kCluster + 8), 0u);
}

// ---- Life -------------------------------------------------------------------

struct Living {
  Living() : file(std::make_shared<LifeDriver>(/*read_only=*/false)) {
    file->set_content(0, new_qcow());
    auto opened = qcow::open_qcow(file, {}, {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    driver = *std::move(opened);
    file->take_calls();
  }
  const std::shared_ptr<LifeDriver> file;
  std::shared_ptr<BlockDriver> driver;
};

TEST(QcowLife, ReopensForReadingAndForWriting) {
  Living living;
  EXPECT_TRUE(living.driver->capabilities().has(Capability::kReopen));
  ASSERT_EQ(write_fill(*living.driver, cluster(0), 1), absl::OkStatus());
  ASSERT_EQ(living.driver->reopen({.read_only = true}), absl::OkStatus());
  EXPECT_TRUE(living.driver->read_only());
  EXPECT_EQ(living.file->take_calls(), (Calls{"reopen for reading"}));
  // What was written is in the file.
  EXPECT_EQ(living.file->length_bytes(), 3 * kCluster);
  EXPECT_NE(get64(living.file->content(), kCluster), 0u);
  EXPECT_TRUE(reads_as(*living.driver, cluster(0), 1));
  ASSERT_EQ(living.driver->reopen({.read_only = false}), absl::OkStatus());
  ASSERT_EQ(write_fill(*living.driver, cluster(1), 2), absl::OkStatus());
  ASSERT_EQ(living.driver->close(), absl::OkStatus());
  EXPECT_EQ(living.file->take_calls(), (Calls{"reopen for writing", "close"}));
}

TEST(QcowLife, AFailedReopenChangesNothing) {
  Living living;
  living.file->fail_next("reopen for reading");
  EXPECT_EQ(errno_of(living.driver->reopen({.read_only = true})), EIO);
  EXPECT_FALSE(living.driver->read_only());
  EXPECT_EQ(write_fill(*living.driver, cluster(0), 1), absl::OkStatus());
}

// Opened for reading only, its tables were not looked at yet.
TEST(QcowLife, DamagedTablesAreNotReopenedForWriting) {
  auto file = std::make_shared<LifeDriver>(/*read_only=*/true);
  std::string bytes = new_qcow();
  put64(&bytes, 48, uint64_t{1} << 40);
  file->set_content(0, bytes);
  OpenOptions options;
  options.read_only = true;
  const auto driver = qcow::open_qcow(file, options, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_TRUE(absl::IsDataLoss((*driver)->reopen({.read_only = false})));
  EXPECT_TRUE((*driver)->read_only());
  EXPECT_EQ(file->take_calls(),
            (Calls{"reopen for writing", "reopen for reading"}));
}

TEST(QcowLife, SomebodyElseMayWriteMeanwhile) {
  Living living;
  ASSERT_EQ(write_fill(*living.driver, cluster(0), 1), absl::OkStatus());
  ASSERT_EQ(living.driver->inactivate(), absl::OkStatus());
  EXPECT_EQ(living.file->take_calls(), (Calls{"inactivate"}));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(write_fill(*living.driver, cluster(0), 2)));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      read_bytes(*living.driver, cluster(0)).status()));
  EXPECT_EQ(living.driver->flush(), absl::OkStatus());
  {
    const auto other = qcow::open_qcow(living.file, {}, {});
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_TRUE(reads_as(**other, cluster(0), 1));
    ASSERT_EQ(write_fill(**other, cluster(1), 7), absl::OkStatus());
    ASSERT_EQ((*other)->flush(), absl::OkStatus());
  }
  ASSERT_EQ(living.driver->activate(), absl::OkStatus());
  EXPECT_TRUE(reads_as(*living.driver, cluster(1), 7));
  ASSERT_EQ(write_fill(*living.driver, cluster(2), 3), absl::OkStatus());
  EXPECT_TRUE(reads_as(*living.driver, cluster(0), 1));
  EXPECT_EQ(living.driver->close(), absl::OkStatus());
}

TEST(QcowLife, AnotherBackingFileMustBeOpenedAnew) {
  auto file = std::make_shared<LifeDriver>(/*read_only=*/false);
  file->set_content(0, new_qcow({.backing_filename = "b"}));
  OpenContext context;
  context.open_child = [](const ChildRequest&) {
    return std::make_shared<MemoryDriver>();
  };
  const auto driver = qcow::open_qcow(file, {}, context);
  ASSERT_TRUE(driver.ok()) << driver.status();
  ASSERT_EQ((*driver)->inactivate(), absl::OkStatus());
  file->set_content(0, new_qcow({.backing_filename = "c"}));
  EXPECT_TRUE(absl::IsFailedPrecondition((*driver)->activate()));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(read_bytes(**driver, sector(0)).status()));
}

// A request that is under way is waited for.
TEST(QcowLife, InactivatingWaitsForRequests) {
  MemoryImage image(options_of());
  ASSERT_EQ(image.write(cluster(0), 1), absl::OkStatus());
  const auto stop = image.file().stop_at({.purpose = Purpose::kWriteAio});
  auto write = in_background([&] { return image.write(sector(0), 2); });
  stop->wait_until_reached();
  auto inactivate = in_background([&] { return image.driver().inactivate(); });
  EXPECT_EQ(inactivate.wait_for(std::chrono::milliseconds(50)),
            std::future_status::timeout);
  stop->resume();
  EXPECT_EQ(write.get(), absl::OkStatus());
  EXPECT_EQ(inactivate.get(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::testing

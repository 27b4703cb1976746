// An open qcow2 image reopened, inactivated and activated, closed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/block_driver.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/qcow2/qcow2_driver.h"
#include "formats/raw/file_driver.h"
#include "tests/formats/qcow2/life_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"

namespace spindle::qcow2 {
namespace {

using testing::Calls;
using testing::check_image_bytes;
using testing::Leaks;
using testing::LifeDriver;
using testing::MemoryDriver;
using testing::ObservingDriver;
using testing::qemu_image_bytes;
using testing::read_bytes;
using testing::reads_as;
using testing::set_big64;
using testing::temporary_path;
using testing::write_fill;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kCluster = 65536;
// Not an access: the file's own call fails.
constexpr Purpose kOfTheFile = Purpose::kProbe;

struct Life {
  explicit Life(const std::string& bytes, bool read_only = false,
                std::shared_ptr<BlockDriver> backing = nullptr)
      : memory(std::make_shared<LifeDriver>(read_only)),
        file(std::make_shared<ObservingDriver>(memory)) {
    memory->set_content(0, bytes);
    OpenOptions options;
    options.read_only = read_only;
    OpenContext context;
    context.open_child = [backing](const ChildRequest&)
        -> absl::StatusOr<std::shared_ptr<BlockDriver>> { return backing; };
    auto opened = open_qcow2(file, options, context);
    EXPECT_TRUE(opened.ok()) << opened.status();
    driver = *opened;
  }
  absl::Status write(ByteRange range, uint8_t value) {
    return write_fill(*driver, range, value);
  }
  std::string content() const { return memory->content(); }
  absl::Status check() const {
    return check_image_bytes(content(), Leaks::kForbidden);
  }
  // Somebody else opens the file, does something and closes it.
  template <typename Use>
  void elsewhere(Use use) {
    const bool read_only = memory->exchange_read_only(false);
    const auto other = open_qcow2(memory, {}, {});
    ASSERT_TRUE(other.ok()) << other.status();
    use(**other);
    ASSERT_TRUE((*other)->close().ok());
    memory->exchange_read_only(read_only);
    memory->take_calls();
  }

  std::shared_ptr<LifeDriver> memory;
  std::shared_ptr<ObservingDriver> file;
  std::shared_ptr<BlockDriver> driver;
};

std::string written_image(const std::string& options = "") {
  return qemu_image_bytes(16 * kMib, options,
                          {"write -P 1 0 64k", "write -P 2 64k 64k"});
}

// Every kind of dirty metadata: a new table, new mappings, drops.
void make_dirty(Life* life) {
  ASSERT_TRUE(life->write({2 * kCluster, 3 * kCluster}, 3).ok());
  ASSERT_TRUE(life->driver->discard({kCluster, kCluster}).ok());
  ASSERT_TRUE(
      life->driver->write_zeroes({0, kCluster}, {.may_unmap = true}).ok());
}

void expect_dirtied(BlockDriver& driver) {
  EXPECT_TRUE(reads_as(driver, {0, 2 * kCluster}, 0));
  EXPECT_TRUE(reads_as(driver, {2 * kCluster, 3 * kCluster}, 3));
}

// ---- Reopen -----------------------------------------------------------------

TEST(Reopen, ForReadingSettlesTheImageAndBackItWrites) {
  Life life(written_image());
  make_dirty(&life);
  ASSERT_TRUE(life.driver->reopen({.read_only = true}).ok());
  EXPECT_TRUE(life.driver->read_only());
  EXPECT_TRUE(life.memory->read_only());
  EXPECT_FALSE(life.driver->capabilities().has(Capability::kDiscard));
  EXPECT_TRUE(life.driver->capabilities().has(Capability::kReopen));
  EXPECT_TRUE(life.check().ok()) << life.check();

  const std::string settled = life.content();
  expect_dirtied(*Life(settled, /*read_only=*/true).driver);
  life.file->reset_counts();
  expect_dirtied(*life.driver);
  EXPECT_TRUE(life.driver->flush().ok());
  EXPECT_EQ(life.file->count(AccessKind::kWrite), 0u);
  EXPECT_TRUE(life.content() == settled);

  ASSERT_TRUE(life.driver->reopen({.read_only = false}).ok());
  EXPECT_FALSE(life.driver->read_only());
  EXPECT_TRUE(life.driver->capabilities().has(Capability::kDiscard));
  ASSERT_TRUE(life.write({8 * kMib, 2 * kCluster}, 5).ok());
  ASSERT_TRUE(life.driver->close().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
  EXPECT_EQ(life.memory->take_calls(),
            (Calls{"reopen for reading", "reopen for writing", "close"}));
  Life again(life.content(), /*read_only=*/true);
  expect_dirtied(*again.driver);
  EXPECT_TRUE(reads_as(*again.driver, {8 * kMib, 2 * kCluster}, 5));
}

TEST(Reopen, AnImageOpenedForReadingIsPreparedForWriting) {
  std::string bytes = written_image();
  bytes[95] |= 4;  // an unknown autoclear bit
  Life life(bytes, /*read_only=*/true);
  EXPECT_EQ(life.content()[95], 4);
  ASSERT_TRUE(life.driver->reopen({.read_only = false}).ok());
  EXPECT_EQ(life.content()[95], 0);
  make_dirty(&life);
  ASSERT_TRUE(life.driver->close().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
}

TEST(Reopen, TheSameModeOpensTheFileAnew) {
  for (bool read_only : {false, true}) {
    Life life(written_image(), read_only);
    ASSERT_TRUE(life.driver->reopen({.read_only = read_only}).ok());
    EXPECT_EQ(life.memory->take_calls(),
              Calls{read_only ? "reopen for reading" : "reopen for writing"});
    EXPECT_EQ(life.driver->read_only(), read_only);
  }
}

TEST(Reopen, OnAnErrorAWriterStaysAWriter) {
  for (bool file_fails : {false, true}) {
    SCOPED_TRACE(file_fails);
    Life life(written_image());
    make_dirty(&life);
    if (file_fails) {
      life.memory->fail_next("reopen for reading");
    } else {
      life.file->fail_at({.purpose = Purpose::kL2Update}, EIO);
    }
    EXPECT_FALSE(life.driver->reopen({.read_only = true}).ok());
    EXPECT_FALSE(life.driver->read_only());
    EXPECT_FALSE(life.memory->read_only());
    ASSERT_TRUE(life.write({8 * kMib, kCluster}, 5).ok());
    ASSERT_TRUE(life.driver->reopen({.read_only = true}).ok());
    EXPECT_TRUE(life.check().ok()) << life.check();
    expect_dirtied(*life.driver);
    EXPECT_TRUE(reads_as(*life.driver, {8 * kMib, kCluster}, 5));
  }
}

TEST(Reopen, OnAnErrorAReaderStaysAReader) {
  std::string bytes = written_image();
  bytes[95] |= 4;
  for (Purpose purpose :
       {kOfTheFile, Purpose::kReftableLoad, Purpose::kHeaderUpdate}) {
    SCOPED_TRACE(purpose_name(purpose));
    Life life(bytes, /*read_only=*/true);
    if (purpose == kOfTheFile) {
      life.memory->fail_next("reopen for writing");
    } else {
      life.file->fail_at({.purpose = purpose}, EIO);
    }
    EXPECT_FALSE(life.driver->reopen({.read_only = false}).ok());
    EXPECT_TRUE(life.driver->read_only());
    EXPECT_TRUE(life.memory->read_only());
    EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 1));
    EXPECT_TRUE(life.content() == bytes);
    ASSERT_TRUE(life.driver->reopen({.read_only = false}).ok());
    make_dirty(&life);
    ASSERT_TRUE(life.driver->close().ok());
    EXPECT_TRUE(life.check().ok()) << life.check();
  }
}

TEST(Reopen, WhatCannotBeWrittenStaysReadOnly) {
  for (uint8_t bit : {uint8_t{1}, uint8_t{2}}) {  // dirty, corrupt
    SCOPED_TRACE(int{bit});
    std::string bytes = written_image();
    bytes[79] = static_cast<char>(bytes[79] | bit);
    Life life(bytes, /*read_only=*/true);
    EXPECT_EQ(life.driver->reopen({.read_only = false}).code(),
              absl::StatusCode::kUnimplemented);
    EXPECT_TRUE(life.driver->read_only());
    EXPECT_EQ(life.memory->take_calls(), Calls{});
    EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 1));
    EXPECT_TRUE(life.content() == bytes);
  }
}

// Tables that only a reader can do with.
TEST(Reopen, WhatOnlyAReaderAcceptsStaysReadOnly) {
  constexpr uint64_t kL1 = 3 * kCluster;
  constexpr uint64_t kBeyond = uint64_t{1} << 40;
  for (const uint64_t field : {uint64_t{40}, uint64_t{48}, kL1}) {
    SCOPED_TRACE(field);
    std::string bytes = written_image();
    set_big64(&bytes, field, kBeyond);
    Life life(bytes, /*read_only=*/true);
    const absl::Status status = life.driver->reopen({.read_only = false});
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(life.driver->read_only());
    EXPECT_TRUE(life.memory->read_only());
    EXPECT_TRUE(reads_as(*life.driver, {2 * kCluster, kCluster}, 0));
    EXPECT_TRUE(life.content() == bytes);
  }
}

TEST(Reopen, DamageThatAReaderFoundKeepsWritersOut) {
  std::string bytes = written_image();
  // The entry of guest cluster 0: data at an odd place.
  testing::set_big64(&bytes, 4 * kCluster,
                     uint64_t{1} << 63 | (5 * kCluster + 512));
  Life life(bytes, /*read_only=*/true);
  EXPECT_TRUE(absl::IsDataLoss(read_bytes(*life.driver, {0, 512}).status()));
  EXPECT_TRUE(absl::IsDataLoss(life.driver->reopen({.read_only = false})));
  EXPECT_EQ(life.memory->take_calls(), Calls{});
  EXPECT_TRUE(life.content() == bytes);
}

TEST(Reopen, WithOtherOptionsTheImageGoesOn) {
  Life life(written_image());
  make_dirty(&life);
  ASSERT_TRUE(life.driver->add_bitmap({.name = "b"}).ok());
  ASSERT_TRUE(life.write({5 * kMib, kCluster}, 4).ok());
  ASSERT_TRUE(life.driver
                  ->reopen({.driver_options = {{"l2-cache-size", "64k"},
                                               {"refcount-cache-size", "64k"}}})
                  .ok());
  EXPECT_FALSE(life.driver->read_only());
  expect_dirtied(*life.driver);
  EXPECT_TRUE(reads_as(*life.driver, {5 * kMib, kCluster}, 4));
  ASSERT_TRUE(life.write({6 * kMib, kCluster}, 6).ok());
  const auto bitmap = life.driver->find_bitmap("b");
  ASSERT_TRUE(bitmap.ok()) << bitmap.status();
  EXPECT_EQ((*bitmap)->dirty_bytes(), 2 * kCluster);
  ASSERT_TRUE(life.driver
                  ->reopen({.read_only = true,
                            .driver_options = {{"l2-cache-size", "1M"}}})
                  .ok());
  EXPECT_TRUE(life.driver->read_only());
  EXPECT_TRUE(reads_as(*life.driver, {6 * kMib, kCluster}, 6));
  EXPECT_TRUE(life.check().ok()) << life.check();
}

TEST(Reopen, WithOptionsThatItRefusesTheImageStaysAsItWas) {
  const std::pair<ReopenOptions, const char*> wrong[] = {
      {{.read_only = true, .driver_options = {{"l2-cache-entry-size", "33"}}},
       nullptr},
      {{.read_only = true, .driver_options = {{"data-file.filename", "x"}}},
       nullptr},
      {{.read_only = true, .driver_options = {{"l2-cache-size", "64k"}}},
       "reopen for writing"},
      {{.read_only = true, .driver_options = {{"l2-cache-size", "64k"}}},
       "reopen for reading"},
  };
  for (const auto& [options, failing] : wrong) {
    Life life(written_image());
    make_dirty(&life);
    if (failing != nullptr) life.memory->fail_next(failing);
    EXPECT_FALSE(life.driver->reopen(options).ok());
    EXPECT_FALSE(life.driver->read_only());
    EXPECT_FALSE(life.memory->read_only());
    ASSERT_TRUE(life.write({9 * kMib, kCluster}, 9).ok());
    expect_dirtied(*life.driver);
    ASSERT_TRUE(life.driver->close().ok());
    EXPECT_TRUE(life.check().ok()) << life.check();
  }
}

TEST(Reopen, WaitsForRequestsInFlight) {
  Life life(written_image());
  auto stop = life.file->stop_at({.purpose = Purpose::kClusterAlloc});
  std::thread writer(
      [&] { EXPECT_TRUE(life.write({4 * kCluster, kCluster}, 7).ok()); });
  stop->wait_until_reached();
  absl::Notification reopened;
  std::thread closer([&] {
    EXPECT_TRUE(life.driver->reopen({.read_only = true}).ok());
    reopened.Notify();
  });
  EXPECT_FALSE(reopened.WaitForNotificationWithTimeout(absl::Milliseconds(50)));
  stop->resume();
  writer.join();
  closer.join();
  EXPECT_TRUE(life.check().ok()) << life.check();
  EXPECT_TRUE(reads_as(*life.driver, {4 * kCluster, kCluster}, 7));
}

// ---- Inactivate and activate ------------------------------------------------

TEST(Inactivate, SettlesTheImageAndLeavesItAloneFromThenOn) {
  Life life(written_image());
  make_dirty(&life);
  ASSERT_TRUE(life.driver->inactivate().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
  const std::string settled = life.content();
  expect_dirtied(*Life(settled, /*read_only=*/true).driver);
  life.file->reset_counts();

  std::string data(kCluster, 9);
  const IoVector qiov(data.data(), data.size());
  const absl::Status refused[] = {
      life.driver->read(qiov, Sector(0)),
      life.driver->write(qiov, Sector(0)),
      life.driver->discard({2 * kCluster, kCluster}),
      life.driver->write_zeroes({2 * kCluster, kCluster}, {}),
      life.driver->block_status({0, kCluster}, BlockStatusScope::kThisLayer)
          .status(),
      life.driver->reopen({.read_only = true})};
  for (const absl::Status& status : refused) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  }
  EXPECT_EQ(life.driver->try_read(qiov, Sector(0)), 0u);
  EXPECT_EQ(life.driver->try_write(qiov, Sector(0)), 0u);
  EXPECT_TRUE(life.driver->flush().ok());
  EXPECT_TRUE(life.driver->inactivate().ok());
  // What it was can still be asked.
  EXPECT_EQ(life.driver->length_bytes(), 16 * kMib);
  EXPECT_EQ(life.driver->limits().optimal_transfer_bytes, kCluster);
  EXPECT_EQ(life.driver->info().virtual_size_bytes, 16 * kMib);

  EXPECT_TRUE(life.driver->close().ok());
  EXPECT_EQ(life.file->total_count(), 0u);
  EXPECT_TRUE(life.content() == settled);
  EXPECT_EQ(life.memory->take_calls(), (Calls{"inactivate", "close"}));
}

TEST(Inactivate, OnAnErrorTheImageStaysActive) {
  for (bool file_fails : {false, true}) {
    SCOPED_TRACE(file_fails);
    Life life(written_image());
    make_dirty(&life);
    if (file_fails) {
      life.memory->fail_next("inactivate");
    } else {
      life.file->fail_at({.purpose = Purpose::kL2Update}, EIO);
    }
    EXPECT_FALSE(life.driver->inactivate().ok());
    EXPECT_EQ(life.memory->take_calls(),
              file_fails ? Calls{"inactivate"} : Calls{});
    expect_dirtied(*life.driver);
    ASSERT_TRUE(life.write({8 * kMib, kCluster}, 5).ok());
    ASSERT_TRUE(life.driver->inactivate().ok());
    EXPECT_TRUE(life.check().ok()) << life.check();
  }
}

TEST(Inactivate, AWriteIsOnTheDiskOrRefused) {
  Life life(written_image());
  life.memory->inactivate_delay = absl::Milliseconds(30);
  constexpr uint64_t kClusters = 16 * kMib / kCluster;
  std::vector<uint64_t> written;
  absl::Notification began;
  std::thread writer([&] {
    for (uint64_t i = 2; i < kClusters; ++i) {
      if (i == 6) began.Notify();
      const absl::Status status = life.write({i * kCluster, kCluster}, 7);
      if (status.ok()) {
        written.push_back(i);
      } else {
        EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
      }
    }
  });
  began.WaitForNotification();
  EXPECT_TRUE(life.driver->inactivate().ok());
  writer.join();
  EXPECT_TRUE(life.check().ok()) << life.check();
  Life other(life.content(), /*read_only=*/true);
  for (uint64_t i : written) {
    EXPECT_TRUE(reads_as(*other.driver, {i * kCluster, kCluster}, 7)) << i;
  }
}

TEST(Activate, SeesWhatSomebodyElseWrote) {
  Life life(written_image());
  make_dirty(&life);
  ASSERT_TRUE(life.driver->inactivate().ok());
  life.elsewhere([](BlockDriver& other) {
    expect_dirtied(other);
    ASSERT_TRUE(write_fill(other, {0, kCluster}, 11).ok());
    ASSERT_TRUE(write_fill(other, {2 * kCluster, kCluster}, 12).ok());
    ASSERT_TRUE(other.discard({3 * kCluster, kCluster}).ok());
    ASSERT_TRUE(write_fill(other, {12 * kMib, 4 * kCluster}, 13).ok());
  });
  ASSERT_TRUE(life.driver->activate().ok());
  EXPECT_EQ(life.memory->take_calls(), Calls{"activate"});
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 11));
  EXPECT_TRUE(reads_as(*life.driver, {kCluster, kCluster}, 0));
  EXPECT_TRUE(reads_as(*life.driver, {2 * kCluster, kCluster}, 12));
  EXPECT_TRUE(reads_as(*life.driver, {3 * kCluster, kCluster}, 0));
  EXPECT_TRUE(reads_as(*life.driver, {4 * kCluster, kCluster}, 3));
  EXPECT_TRUE(reads_as(*life.driver, {12 * kMib, 4 * kCluster}, 13));
  // New clusters go where the other left room.
  ASSERT_TRUE(life.write({8 * kMib, 16 * kCluster}, 14).ok());
  EXPECT_TRUE(reads_as(*life.driver, {12 * kMib, 4 * kCluster}, 13));
  ASSERT_TRUE(life.driver->close().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
}

TEST(Activate, ForgetsInflatedClusters) {
  const std::string raw = temporary_path("raw");
  const std::string path = temporary_path("image");
  ASSERT_TRUE(
      testing::write_file(raw, std::vector<uint8_t>(4 * kCluster, 0x5a)).ok());
  ASSERT_TRUE(
      testing::qemu_convert({raw, "raw"}, {path, "qcow2"}, "", {"-c"}).ok());
  const auto bytes = testing::read_file(path);
  ASSERT_TRUE(bytes.ok());
  ::unlink(raw.c_str());
  ::unlink(path.c_str());
  for (bool read_only : {false, true}) {
    Life life({bytes->begin(), bytes->end()}, read_only);
    EXPECT_TRUE(reads_as(*life.driver, {0, 4 * kCluster}, 0x5a));
    ASSERT_TRUE(life.driver->inactivate().ok());
    life.elsewhere([](BlockDriver& other) {
      ASSERT_TRUE(write_fill(other, {kCluster, kCluster}, 1).ok());
    });
    ASSERT_TRUE(life.driver->activate().ok());
    EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 0x5a));
    EXPECT_TRUE(reads_as(*life.driver, {kCluster, kCluster}, 1));
    EXPECT_TRUE(reads_as(*life.driver, {2 * kCluster, 2 * kCluster}, 0x5a));
    EXPECT_EQ(life.driver->read_only(), read_only);
  }
}

TEST(Activate, TakesAnImageThatHasAnotherShape) {
  Life life(written_image());
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 1));
  ASSERT_TRUE(life.driver->inactivate().ok());
  life.memory->set_content(
      0, qemu_image_bytes(40 * kMib, "cluster_size=4k,compat=0.10",
                          {"write -P 8 0 64k", "write -P 9 39M 1M"}));
  ASSERT_TRUE(life.driver->activate().ok());
  EXPECT_EQ(life.driver->length_bytes(), 40 * kMib);
  EXPECT_EQ(life.driver->limits().optimal_transfer_bytes, 4096u);
  EXPECT_EQ(life.driver->info().format_specific[0].second, "0.10");
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 8));
  EXPECT_TRUE(reads_as(*life.driver, {39 * kMib, kMib}, 9));
  ASSERT_TRUE(life.write({20 * kMib, kMib}, 4).ok());
  EXPECT_TRUE(reads_as(*life.driver, {39 * kMib, kMib}, 9));
}

TEST(Activate, OnAnErrorTheImageStaysInactiveAndTheFileToo) {
  for (Purpose purpose : {kOfTheFile, Purpose::kHeaderLoad, Purpose::kL1Load,
                          Purpose::kReftableLoad}) {
    SCOPED_TRACE(purpose_name(purpose));
    Life life(written_image());
    make_dirty(&life);
    ASSERT_TRUE(life.driver->inactivate().ok());
    life.elsewhere([](BlockDriver& other) {
      ASSERT_TRUE(write_fill(other, {0, kCluster}, 11).ok());
    });
    Calls expected = {"activate", "inactivate"};
    if (purpose == kOfTheFile) {
      life.memory->fail_next("activate");
      expected.pop_back();
    } else {
      life.file->fail_at({.purpose = purpose}, EIO);
    }
    EXPECT_FALSE(life.driver->activate().ok());
    EXPECT_EQ(life.memory->take_calls(), expected);
    EXPECT_TRUE(absl::IsFailedPrecondition(life.write({0, kCluster}, 12)));
    EXPECT_EQ(life.driver->length_bytes(), 16 * kMib);
    ASSERT_TRUE(life.driver->activate().ok());
    EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 11));
    ASSERT_TRUE(life.write({kCluster, kCluster}, 12).ok());
    ASSERT_TRUE(life.driver->close().ok());
    EXPECT_TRUE(life.check().ok()) << life.check();
  }
}

TEST(Activate, RefusesWhatCannotBeOpened) {
  Life life(written_image());
  ASSERT_TRUE(life.driver->inactivate().ok());
  const std::string good = life.content();
  std::string bad = good;
  bad[0] = 'X';
  std::string corrupt = good;
  corrupt[79] |= 2;
  for (const std::string& bytes : {bad, corrupt}) {
    life.memory->set_content(0, bytes);
    EXPECT_FALSE(life.driver->activate().ok());
    EXPECT_TRUE(life.content() == bytes);
  }
  life.memory->take_calls();
  // Nothing is written when it is given up, either.
  life.file->reset_counts();
  EXPECT_TRUE(life.driver->close().ok());
  EXPECT_EQ(life.file->total_count(), 0u);
}

TEST(Activate, RepairsADirtyImage) {
  Life life(written_image());
  ASSERT_TRUE(life.driver->inactivate().ok());
  std::string dirty = life.content();
  dirty[79] |= 1;
  life.memory->set_content(0, dirty);
  ASSERT_TRUE(life.driver->activate().ok());
  EXPECT_EQ(life.content()[79] & 1, 0);
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 1));
  ASSERT_TRUE(life.write({kCluster, kCluster}, 12).ok());
  ASSERT_TRUE(life.driver->close().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
}

TEST(Activate, AnActiveImageStaysAsItIs) {
  Life life(written_image());
  make_dirty(&life);
  EXPECT_TRUE(life.driver->activate().ok());
  EXPECT_EQ(life.memory->take_calls(), Calls{});
  expect_dirtied(*life.driver);
}

// ---- With a backing file ----------------------------------------------------

struct Overlay {
  Overlay() : backing(std::make_shared<LifeDriver>(/*read_only=*/true)) {
    const std::string base = temporary_path("base");
    const std::string path = temporary_path("overlay");
    backing->set_content(0, std::string(kMib, 6));
    EXPECT_TRUE(testing::write_file(base, std::vector<uint8_t>(kMib, 6)).ok());
    EXPECT_TRUE(testing::qemu_create({.image = {path, "qcow2"},
                                      .size_bytes = kMib,
                                      .options = "",
                                      .backing = {{base, "raw"}}})
                    .ok());
    const auto bytes = testing::read_file(path);
    EXPECT_TRUE(bytes.ok());
    ::unlink(path.c_str());
    ::unlink(base.c_str());
    life = std::make_unique<Life>(std::string(bytes->begin(), bytes->end()),
                                  false, backing);
  }
  std::shared_ptr<LifeDriver> backing;
  std::unique_ptr<Life> life;
};

TEST(Backing, GoesWithTheImage) {
  Overlay overlay;
  Life& life = *overlay.life;
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 6));
  ASSERT_TRUE(life.driver->inactivate().ok());
  EXPECT_EQ(overlay.backing->take_calls(), Calls{"inactivate"});
  overlay.backing->set_content(0, std::string(kMib / 2, 7));
  ASSERT_TRUE(life.driver->activate().ok());
  EXPECT_EQ(overlay.backing->take_calls(), Calls{"activate"});
  EXPECT_TRUE(reads_as(*life.driver, {0, kMib / 2}, 7));
  ASSERT_TRUE(life.driver->close().ok());
  EXPECT_EQ(overlay.backing->take_calls(), Calls{"close"});
}

TEST(Backing, StaysWithTheImageOnAnError) {
  Overlay overlay;
  Life& life = *overlay.life;
  overlay.backing->fail_next("inactivate");
  EXPECT_FALSE(life.driver->inactivate().ok());
  EXPECT_EQ(life.memory->take_calls(), Calls{});
  overlay.backing->take_calls();
  life.memory->fail_next("inactivate");
  EXPECT_FALSE(life.driver->inactivate().ok());
  EXPECT_EQ(overlay.backing->take_calls(), (Calls{"inactivate", "activate"}));
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 6));

  ASSERT_TRUE(life.driver->inactivate().ok());
  overlay.backing->take_calls();
  life.memory->fail_next("activate");
  EXPECT_FALSE(life.driver->activate().ok());
  EXPECT_EQ(overlay.backing->take_calls(), (Calls{"activate", "inactivate"}));
  life.file->fail_at({.purpose = Purpose::kL1Load}, EIO);
  EXPECT_FALSE(life.driver->activate().ok());
  EXPECT_EQ(overlay.backing->take_calls(), (Calls{"activate", "inactivate"}));
  ASSERT_TRUE(life.driver->activate().ok());
  EXPECT_TRUE(reads_as(*life.driver, {0, kCluster}, 6));
}

TEST(Backing, AnotherNameIsNotTakenForTheSameFile) {
  Overlay overlay;
  Life& life = *overlay.life;
  ASSERT_TRUE(life.driver->inactivate().ok());
  std::string bytes = life.content();
  const uint64_t name_at = testing::get_big64(bytes, 8);
  bytes[name_at + 1] ^= 1;
  life.memory->set_content(0, bytes);
  const absl::Status status = life.driver->activate();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::IsFailedPrecondition(life.write({0, kCluster}, 1)));
}

// ---- Close ------------------------------------------------------------------

TEST(Close, SettlesTheImage) {
  Life life(written_image());
  make_dirty(&life);
  EXPECT_TRUE(life.driver->close().ok());
  EXPECT_TRUE(life.check().ok()) << life.check();
}

TEST(Close, ClosesEverythingAndReturnsTheFirstError) {
  for (int failing = 0; failing < 3; ++failing) {
    SCOPED_TRACE(failing);
    Overlay overlay;
    Life& life = *overlay.life;
    ASSERT_TRUE(life.write({0, kCluster}, 1).ok());
    if (failing == 0) life.file->fail_at({.purpose = Purpose::kL2Update}, EIO);
    if (failing <= 1) life.memory->fail_next("close");
    if (failing == 2) overlay.backing->fail_next("close");
    const absl::Status status = life.driver->close();
    EXPECT_EQ(errno_of(status), EIO) << status;
    EXPECT_EQ(absl::StartsWith(status.message(), "close"), failing != 0)
        << status;
    EXPECT_EQ(life.memory->take_calls(), Calls{"close"});
    EXPECT_EQ(overlay.backing->take_calls(), Calls{"close"});
  }
}

// ---- Files, and the other implementation ------------------------------------

struct OnDisk {
  OnDisk() : path(temporary_path("image")) {
    const std::string bytes = written_image();
    EXPECT_TRUE(testing::write_file(
                    path, {reinterpret_cast<const uint8_t*>(bytes.data()),
                           bytes.size()})
                    .ok());
    const auto file = FileDriver::open(path, {});
    EXPECT_TRUE(file.ok()) << file.status();
    const auto opened = open_qcow2(*file, {}, {});
    EXPECT_TRUE(opened.ok()) << opened.status();
    driver = *opened;
  }
  ~OnDisk() { ::unlink(path.c_str()); }
  absl::Status qemu(const std::string& command, bool read_only = false) {
    return testing::qemu_io({path, "qcow2"}, {command},
                            {.read_only = read_only});
  }
  const std::string path;
  std::shared_ptr<BlockDriver> driver;
};

TEST(OnDisk, TheLocksFollowTheMode) {
  OnDisk image;
  EXPECT_FALSE(image.qemu("read 0 64k", /*read_only=*/true).ok());
  ASSERT_TRUE(write_fill(*image.driver, {kMib, kCluster}, 3).ok());
  ASSERT_TRUE(image.driver->reopen({.read_only = true}).ok());
  EXPECT_TRUE(image.qemu("read -P 3 1M 64k", /*read_only=*/true).ok());
  EXPECT_FALSE(image.qemu("write -P 4 1M 64k").ok());
  ASSERT_TRUE(image.driver->reopen({.read_only = false}).ok());
  EXPECT_FALSE(image.qemu("read -P 3 1M 64k", /*read_only=*/true).ok());
  ASSERT_TRUE(write_fill(*image.driver, {kMib, kCluster}, 5).ok());
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_TRUE(image.qemu("read -P 5 1M 64k").ok());
  EXPECT_TRUE(testing::qemu_check({image.path, "qcow2"}).ok());
}

TEST(OnDisk, AnotherProcessWritesWhileTheImageIsInactive) {
  OnDisk image;
  ASSERT_TRUE(write_fill(*image.driver, {kMib, kCluster}, 3).ok());
  EXPECT_FALSE(image.qemu("write -P 9 2M 1M").ok());
  ASSERT_TRUE(image.driver->inactivate().ok());
  ASSERT_TRUE(image.qemu("read -P 3 1M 64k").ok());
  ASSERT_TRUE(image.qemu("write -P 9 2M 1M").ok());
  ASSERT_TRUE(image.qemu("discard 1M 64k").ok());
  const auto size = testing::run_tool_ok(
      {"qemu-img", "resize", "-q", "-f", "qcow2", image.path, "20M"});
  ASSERT_TRUE(size.ok()) << size.status();
  ASSERT_TRUE(image.driver->activate().ok());
  EXPECT_FALSE(image.qemu("write -P 9 2M 1M").ok());
  EXPECT_EQ(image.driver->length_bytes(), 20 * kMib);
  EXPECT_TRUE(reads_as(*image.driver, {0, kCluster}, 1));
  EXPECT_TRUE(reads_as(*image.driver, {kMib, kCluster}, 0));
  EXPECT_TRUE(reads_as(*image.driver, {2 * kMib, kMib}, 9));
  ASSERT_TRUE(write_fill(*image.driver, {19 * kMib, kMib}, 4).ok());
  ASSERT_TRUE(image.driver->close().ok());
  EXPECT_TRUE(testing::qemu_check({image.path, "qcow2"}).ok());
  EXPECT_TRUE(image.qemu("read -P 4 19M 1M").ok());
}

TEST(OnDisk, ActivateFailsWhileSomebodyElseHoldsTheLocks) {
  OnDisk image;
  ASSERT_TRUE(image.driver->inactivate().ok());
  const auto other = FileDriver::open(image.path, {});
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(absl::IsUnavailable(image.driver->activate()));
  EXPECT_TRUE(
      absl::IsFailedPrecondition(write_fill(*image.driver, {0, kCluster}, 5)));
  ASSERT_TRUE((*other)->close().ok());
  ASSERT_TRUE(image.driver->activate().ok());
  EXPECT_TRUE(reads_as(*image.driver, {0, kCluster}, 1));
}

}  // namespace
}  // namespace spindle::qcow2

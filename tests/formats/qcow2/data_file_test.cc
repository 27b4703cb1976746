// Images with an external data file: opening, order of writes, errors, raw data
// files, requests side by side.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "engine/sector.h"
#include "formats/cluster/image_files.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/formats/qcow2/data_image.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/failing_accesses.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::DataImage;
using testing::FailAt;
using testing::for_each_failing_access;
using testing::Leaks;
using testing::MemoryDriver;
using testing::ObservingDriver;
using testing::read_bytes;
using testing::reads_as;
using testing::write_fill;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kDiskBytes = 32 * kCluster;
// Where the extension with the name stands.
constexpr size_t kNameExtension = kVersion3HeaderBytes;

OptionMap options(const std::string& raw = "off") {
  return {{"cluster_size", absl::StrCat(kCluster)}, {"data_file_raw", raw}};
}

std::string disk_of(BlockDriver& driver) {
  const auto content = read_bytes(driver, {0, kDiskBytes});
  return content.ok() ? *content : content.status().ToString();
}

// ---- Opening ----------------------------------------------------------------

TEST(DataFileOpen, AsksForTheNameThatTheImageStates) {
  DataImage image(kDiskBytes, options());
  EXPECT_EQ(image.request().filename, image.data_filename());
  EXPECT_EQ(image.request().role, ChildRole::kDataFile);
  EXPECT_FALSE(image.request().read_only);
  EXPECT_EQ(image.driver().data_file().get(), &image.data());
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_TRUE(image.request().read_only);
}

TEST(DataFileOpen, AnOptionOverridesTheName) {
  DataImage image(kDiskBytes, options());
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(
      image.open(false, {{std::string(kDataFileOption), "elsewhere"}}).ok());
  EXPECT_EQ(image.request().filename, "elsewhere");
}

TEST(DataFileOpen, NeedsPermission) {
  DataImage image(kDiskBytes, options());
  ASSERT_TRUE(image.close().ok());
  auto copy = std::make_shared<MemoryDriver>();
  copy->set_content(0, image.file_memory().content());
  const auto opened = open_qcow2(copy, OpenOptions(), OpenContext());
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(
      absl::StrContains(opened.status().message(), image.data_filename()))
      << opened.status();
}

struct Hostile {
  const char* name;
  std::function<void(std::string*)> change;
  const char* message;
  absl::StatusCode code;
};

TEST(DataFileOpen, RefusesWhatMakesNoSenseAndTouchesNothing) {
  const auto set_type = [](std::string* bytes, uint32_t type) {
    store_big32(bytes->data() + kNameExtension, type);
  };
  const auto set_length = [](std::string* bytes, uint32_t length) {
    store_big32(bytes->data() + kNameExtension + 4, length);
  };
  const Hostile cases[] = {
      {"bit without extension",
       [&](std::string* b) { set_type(b, 0x11223344); },
       "'data-file' is required", absl::StatusCode::kInvalidArgument},
      {"empty name",
       [&](std::string* b) {
         // What held the name is the end of the extensions then.
         set_length(b, 0);
         store_big64(b->data() + kNameExtension + 8, 0);
       },
       "'data-file' is required", absl::StatusCode::kInvalidArgument},
      {"name that begins with a zero byte",
       [](std::string* b) { (*b)[kNameExtension + 8] = 0; },
       "'data-file' is required", absl::StatusCode::kInvalidArgument},
      {"name beyond the header",
       [&](std::string* b) { set_length(b, kCluster); }, "0x44415441",
       absl::StatusCode::kDataLoss},
      {"name of 2^32-1 bytes",
       [&](std::string* b) { set_length(b, UINT32_MAX); }, "0x44415441",
       absl::StatusCode::kDataLoss},
      {"raw without a data file",
       [](std::string* b) {
         store_big64(b->data() + kIncompatibleFeaturesOffset, 0);
         store_big64(b->data() + kAutoclearFeaturesOffset,
                     kAutoclearDataFileRaw);
       },
       "data-file-raw requires a data file", absl::StatusCode::kDataLoss},
  };
  for (const Hostile& c : cases) {
    SCOPED_TRACE(c.name);
    DataImage image(kDiskBytes, options());
    ASSERT_TRUE(image.close().ok());
    std::string bytes = image.file_memory().content();
    c.change(&bytes);
    image.file_memory().set_content(0, bytes);
    for (const bool read_only : {false, true}) {
      const absl::Status opened = image.open(read_only);
      EXPECT_EQ(opened.code(), c.code) << opened;
      EXPECT_TRUE(absl::StrContains(opened.message(), c.message)) << opened;
    }
    EXPECT_TRUE(image.file_memory().content() == bytes);
  }
}

TEST(DataFileOpen, AnOverlongNameIsRefused) {
  DataImage image(kDiskBytes, {{"cluster_size", "65536"}});
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.file_memory().content();
  store_big32(bytes.data() + kNameExtension + 4, kMaxDataFilenameBytes + 1);
  image.file_memory().set_content(0, bytes);
  const absl::Status opened = image.open();
  EXPECT_EQ(opened.code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(absl::StrContains(opened.message(), "4095")) << opened;
}

TEST(DataFileOpen, AnExtensionWithoutTheBitIsNoDataFile) {
  DataImage image(kDiskBytes, options());
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.file_memory().content();
  store_big64(bytes.data() + kIncompatibleFeaturesOffset, 0);
  image.file_memory().set_content(0, bytes);
  ASSERT_TRUE(image.open().ok());
  EXPECT_EQ(image.driver().data_file(), nullptr);
  ASSERT_TRUE(write_fill(image.driver(), {0, kCluster}, 1).ok());
  ASSERT_TRUE(image.close().ok());
  EXPECT_EQ(image.data().count(AccessKind::kWrite), 0u);
  const absl::Status given =
      image.open(false, {{std::string(kDataFileOption), "d"}});
  EXPECT_EQ(given.code(), absl::StatusCode::kInvalidArgument) << given;
}

// ---- What the tables may say ------------------------------------------------

TEST(DataFileTables, AnEntryMustNameTheGuestsOwnOffset) {
  for (const uint64_t entry :
       {kEntryCopied | 3 * kCluster, kEntryCopied | uint64_t{0},
        kL2Compressed | 3 * kCluster}) {
    SCOPED_TRACE(entry);
    DataImage image(kDiskBytes, options());
    ASSERT_TRUE(write_fill(image.driver(), {2 * kCluster, kCluster}, 1).ok());
    ASSERT_TRUE(image.close().ok());
    std::string bytes = image.file_memory().content();
    const uint64_t l1 = load_big64(bytes.data() + kL1TableOffsetOffset);
    const uint64_t l2 = load_big64(bytes.data() + l1) & kL1OffsetMask;
    store_big64(bytes.data() + l2 + 16, entry);
    image.file_memory().set_content(0, bytes);
    ASSERT_TRUE(image.open().ok());
    EXPECT_TRUE(absl::IsDataLoss(
        read_bytes(image.driver(), {2 * kCluster, 512}).status()));
    EXPECT_TRUE(
        absl::IsDataLoss(write_fill(image.driver(), {2 * kCluster, 512}, 2)));
    EXPECT_EQ(image.data().count(AccessKind::kWrite), 0u);
  }
}

TEST(DataFileTables, TheFirstClusterStandsAtOffsetZero) {
  DataImage image(kDiskBytes, options());
  ASSERT_TRUE(write_fill(image.driver(), {512, 512}, 1).ok());
  const auto status =
      image.driver().block_status({0, kCluster}, BlockStatusScope::kThisLayer);
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data);
  EXPECT_EQ(status->host_offset, 0u);
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open().ok());
  EXPECT_TRUE(reads_as(image.driver(), {512, 512}, 1));
  EXPECT_TRUE(reads_as(image.driver(), {1024, kCluster}, 0));
  ASSERT_TRUE(image.driver().discard({0, kCluster}).ok());
  EXPECT_TRUE(reads_as(image.driver(), {0, kCluster}, 0));
  ASSERT_TRUE(image.close().ok());
  EXPECT_EQ(image.check(), absl::OkStatus());
}

// Without a data file there is nothing at offset 0 but the header.
TEST(DataFileTables, OffsetZeroIsNoPlaceInAnImageWithoutDataFile) {
  testing::MemoryImage image(
      {.size_bytes = kDiskBytes, .create = {{"cluster_size", "4096"}}});
  ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.memory().content();
  const uint64_t l1 = load_big64(bytes.data() + kL1TableOffsetOffset);
  const uint64_t l2 = load_big64(bytes.data() + l1) & kL1OffsetMask;
  store_big64(bytes.data() + l2, kEntryCopied);
  image.memory().set_content(0, bytes);
  ASSERT_TRUE(image.open().ok());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 0));
  ASSERT_TRUE(image.write({512, 512}, 2).ok());
  EXPECT_TRUE(image.reads_as({512, 512}, 2));
  EXPECT_TRUE(image.reads_as({1024, 512}, 0));
  EXPECT_NE(image.host_of(0), 0u);
}

TEST(DataFile, HasNoCompressedClustersAndNoSnapshots) {
  DataImage image(kDiskBytes, options());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kWriteCompressed));
  std::string bytes(kCluster, 'x');
  EXPECT_TRUE(absl::IsUnimplemented(image.driver().write_compressed(
      IoVector(bytes.data(), bytes.size()), Sector())));
  EXPECT_TRUE(
      absl::IsUnimplemented(image.driver().create_snapshot({}).status()));
  EXPECT_TRUE(absl::IsUnimplemented(image.driver().apply_snapshot("1")));
  EXPECT_TRUE(absl::IsUnimplemented(image.driver().delete_snapshot("1")));
}

TEST(DataFile, DoesNotOutgrowTheDisk) {
  DataImage image(kDiskBytes - 1536, options());
  ASSERT_TRUE(write_fill(image.driver(), {kDiskBytes - 2048, 512}, 1).ok());
  EXPECT_EQ(image.data_memory().length_bytes(), kDiskBytes - 1536);
  ASSERT_TRUE(image.driver().discard({31 * kCluster, 2560}).ok());
  EXPECT_EQ(image.data_memory().length_bytes(), kDiskBytes - 1536);
}

// ---- Order ------------------------------------------------------------------

// No entry reaches the file before the data that it maps, or the zeroes that it
// calls zero, are durable in the data file.
TEST(DataFileOrder, DataAreDurableBeforeTheirMapping) {
  for (const char* raw : {"off", "on"}) {
    DataImage image(kDiskBytes, options(raw));
    std::atomic<bool> unsynced{false};
    std::atomic<int> updates{0};
    image.data().set_hook([&](const Access& access) {
      if (access.kind == AccessKind::kFlush) unsynced = false;
      if (access.kind == AccessKind::kWrite ||
          access.kind == AccessKind::kWriteZeroes) {
        unsynced = true;
      }
      return absl::OkStatus();
    });
    image.file().set_hook([&](const Access& access) {
      if (access.purpose != Purpose::kL2Update) return absl::OkStatus();
      ++updates;
      EXPECT_FALSE(unsynced);
      return absl::OkStatus();
    });
    BlockDriver& driver = image.driver();
    ASSERT_TRUE(write_fill(driver, {0, 3 * kCluster}, 1).ok());
    ASSERT_TRUE(driver.flush().ok());
    ASSERT_TRUE(write_fill(driver, {5 * kCluster + 512, 512}, 2).ok());
    ASSERT_TRUE(driver.flush().ok());
    ASSERT_TRUE(driver.write_zeroes({0, kCluster}, {.may_unmap = true}).ok());
    ASSERT_TRUE(driver.flush().ok());
    ASSERT_TRUE(driver.discard({kCluster, kCluster}).ok());
    ASSERT_TRUE(driver.flush().ok());
    EXPECT_GE(updates, raw == std::string("on") ? 2 : 3);
  }
}

TEST(DataFileOrder, FlushMakesOverwrittenDataDurable) {
  DataImage image(kDiskBytes, options());
  ASSERT_TRUE(write_fill(image.driver(), {0, kCluster}, 1).ok());
  ASSERT_TRUE(image.driver().flush().ok());
  image.data().reset_counts();
  ASSERT_TRUE(write_fill(image.driver(), {0, 512}, 2).ok());
  ASSERT_TRUE(image.driver().flush().ok());
  EXPECT_EQ(image.data().count(AccessKind::kFlush), 1u);
}

// ---- Errors -----------------------------------------------------------------

struct ErrorCase {
  const char* raw;
  bool in_data;
};

class DataFileErrors : public ::testing::TestWithParam<ErrorCase> {};

// Whatever access fails: the caller learns of it, and what was there stays, or
// becomes what was asked for.
TEST_P(DataFileErrors, LeaveTheImageAsItWas) {
  const struct {
    const char* name;
    ByteRange range;
    std::function<absl::Status(BlockDriver&)> run;
  } operations[] = {
      {"first write",
       {7 * kCluster, 3 * kCluster},
       [](BlockDriver& d) {
         return write_fill(d, {7 * kCluster + 512, 2 * kCluster}, 9);
       }},
      {"overwrite",
       {0, kCluster},
       [](BlockDriver& d) { return write_fill(d, {0, 512}, 9); }},
      {"zero",
       {0, kCluster},
       [](BlockDriver& d) {
         return d.write_zeroes({0, kCluster}, {.may_unmap = true});
       }},
      {"discard",
       {0, 2 * kCluster},
       [](BlockDriver& d) { return d.discard({0, 2 * kCluster}); }},
  };
  const ErrorCase& c = GetParam();
  int failures = 0;
  for (const auto& operation : operations) {
    SCOPED_TRACE(operation.name);
    failures += for_each_failing_access([&](const FailAt& fail) {
      DataImage image(kDiskBytes, options(c.raw));
      EXPECT_TRUE(write_fill(image.driver(), {0, 4 * kCluster}, 5).ok());
      EXPECT_TRUE(image.driver().flush().ok());
      const std::string before = disk_of(image.driver());
      ObservingDriver& failing = c.in_data ? image.data() : image.file();
      fail.arm(&failing);
      const absl::Status done = operation.run(image.driver());
      const absl::Status flushed = image.driver().flush();
      const bool failed = failing.failure_count() != 0;
      failing.clear_failures();
      if (!failed) return false;
      const std::string now = disk_of(image.driver());
      const auto outside = [&](const std::string& disk) {
        return disk.substr(0, operation.range.offset) +
               disk.substr(operation.range.end());
      };
      EXPECT_TRUE(outside(now) == outside(before));
      EXPECT_TRUE(image.close().ok()) << done << flushed;
      EXPECT_EQ(image.check(Leaks::kAllowed), absl::OkStatus());
      EXPECT_TRUE(image.open().ok());
      EXPECT_TRUE(disk_of(image.driver()) == now);
      if (std::string(c.raw) == "on" && done.ok()) {
        EXPECT_TRUE(image.data_memory().content() == now);
      }
      return true;
    });
  }
  EXPECT_GT(failures, 2);
}

INSTANTIATE_TEST_SUITE_P(All, DataFileErrors,
                         ::testing::Values(ErrorCase{"off", true},
                                           ErrorCase{"off", false},
                                           ErrorCase{"on", true},
                                           ErrorCase{"on", false}));

// ---- Life cycle -------------------------------------------------------------

TEST(DataFileLife, TheRawBitStaysWhenTheImageIsWritten) {
  DataImage image(kDiskBytes, options("on"));
  image.file_memory();
  ASSERT_TRUE(write_fill(image.driver(), {0, kCluster}, 1).ok());
  ASSERT_TRUE(image.close().ok());
  std::string bytes = image.file_memory().content();
  EXPECT_EQ(load_big64(bytes.data() + kAutoclearFeaturesOffset),
            kAutoclearDataFileRaw);
  // One that nobody knows goes.
  store_big64(bytes.data() + kAutoclearFeaturesOffset,
              kAutoclearDataFileRaw | uint64_t{1} << 40);
  image.file_memory().set_content(0, bytes);
  ASSERT_TRUE(image.open().ok());
  ASSERT_TRUE(image.close().ok());
  bytes = image.file_memory().content();
  EXPECT_EQ(load_big64(bytes.data() + kAutoclearFeaturesOffset),
            kAutoclearDataFileRaw);
}

// ---- Side by side -----------------------------------------------------------

// Writers, zeroes and discards that meet in the same clusters: a raw data file
// has what the tables say, byte for byte.
TEST(DataFileStress, ARawFileIsTheDisk) {
  DataImage image(kDiskBytes, options("on"));
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&image, t] {
      std::mt19937_64 random(testing::test_seed() + static_cast<uint64_t>(t));
      BlockDriver& driver = image.driver();
      for (int i = 0; i < 300; ++i) {
        const uint64_t cluster = random() % 6 * kCluster;
        const uint64_t length = (random() % 2 + 1) * kCluster;
        switch (random() % 5) {
          case 0:
            EXPECT_TRUE(driver.discard({cluster, length}).ok());
            break;
          case 1:
            EXPECT_TRUE(
                driver.write_zeroes({cluster, length}, {.may_unmap = true})
                    .ok());
            break;
          case 2:
            EXPECT_TRUE(driver.flush().ok());
            break;
          default:
            EXPECT_TRUE(write_fill(driver,
                                   {cluster + random() % 8 * 512,
                                    (random() % 12 + 1) * 512},
                                   static_cast<uint8_t>(random()))
                            .ok());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(disk_of(image.driver()) == image.data_memory().content());
  ASSERT_TRUE(image.close().ok());
  EXPECT_EQ(image.check(), absl::OkStatus());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_TRUE(disk_of(image.driver()) == image.data_memory().content());
}

// A write stands before its cluster while zeroes come: they wait for it.
TEST(DataFileStress, ZeroesWaitForAWriteThatIsOnItsWay) {
  DataImage image(kDiskBytes, options("on"));
  ASSERT_TRUE(write_fill(image.driver(), {0, kCluster}, 1).ok());
  const auto stop = image.data().stop_at({.purpose = Purpose::kWriteAio});
  std::thread writer(
      [&image] { EXPECT_TRUE(write_fill(image.driver(), {0, 512}, 2).ok()); });
  stop->wait_until_reached();
  std::thread zeroer(
      [&image] { EXPECT_TRUE(image.driver().discard({0, kCluster}).ok()); });
  // Time enough to get past the write, if nothing held it back.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  stop->resume();
  writer.join();
  zeroer.join();
  EXPECT_TRUE(reads_as(image.driver(), {0, kCluster}, 0));
  EXPECT_TRUE(disk_of(image.driver()) == image.data_memory().content());
}

// Each thread has sectors of its own in clusters that all share: nobody's first
// write, padding included, destroys another's.
TEST(DataFileStress, NeighboursKeepTheirData) {
  for (const char* raw : {"off", "on"}) {
    DataImage image(kDiskBytes, options(raw));
    constexpr uint64_t kThreads = 4;
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&image, t] {
        std::mt19937_64 random(testing::test_seed() + t);
        for (int round = 0; round < 20; ++round) {
          for (uint64_t s = t; s < kDiskBytes / 512; s += kThreads) {
            if (random() % 4 == 0) continue;
            const auto value = static_cast<uint8_t>(random() % 255 + 1);
            EXPECT_TRUE(write_fill(image.driver(), {s * 512, 512}, value).ok());
            EXPECT_TRUE(reads_as(image.driver(), {s * 512, 512}, value));
          }
          if (round % 5 == 4) {
            EXPECT_TRUE(image.driver().flush().ok());
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_TRUE(image.close().ok());
    EXPECT_EQ(image.check(), absl::OkStatus());
  }
}

}  // namespace
}  // namespace spindle::qcow2

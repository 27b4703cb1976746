#include "formats/qcow2/check.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/format.h"
#include "engine/image_check.h"
#include "engine/run_pieces.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "formats/qcow2/reference_counter.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"
#include "threadpool/default_executor.h"

namespace spindle::qcow2 {
namespace {

using ::spindle::testing::check_image_bytes;
using ::spindle::testing::CutDisk;
using ::spindle::testing::get_big64;
using ::spindle::testing::Leaks;
using ::spindle::testing::LogEntry;
using ::spindle::testing::LoggingDriver;
using ::spindle::testing::MemoryDriver;
using ::spindle::testing::MemoryImage;
using ::spindle::testing::MemoryImageOptions;
using ::spindle::testing::ObservingDriver;
using ::spindle::testing::qemu_image_bytes;
using ::spindle::testing::read_bytes;
using ::spindle::testing::set_big64;
using ::spindle::testing::test_seed;

constexpr uint64_t kDiskBytes = uint64_t{1} << 20;
constexpr uint64_t kClusterBytes = 4096;

std::string sound_image() {
  return qemu_image_bytes(
      kDiskBytes, "cluster_size=4k",
      {"write -P 1 0 64k", "write -P 2 512k 256k", "write -z 64k 16k"});
}

// Where things stand in such an image.
struct Places {
  explicit Places(const std::string& bytes)
      : l1(get_big64(bytes, kL1TableOffsetOffset)),
        l2(get_big64(bytes, l1) & kL1OffsetMask),
        refcount_table(get_big64(bytes, kRefcountTableOffsetOffset)),
        block(get_big64(bytes, refcount_table)) {}
  uint64_t l1;
  uint64_t l2;
  uint64_t refcount_table;
  uint64_t block;
};

std::shared_ptr<MemoryDriver> in_memory(const std::string& bytes,
                                        MemoryDriver::Options options = {}) {
  auto file = std::make_shared<MemoryDriver>(std::move(options));
  file->set_content(0, bytes);
  return file;
}

CheckOptions repair_all() {
  CheckOptions options;
  options.fix_leaks = options.fix_errors = true;
  return options;
}

absl::StatusOr<CheckResult> check(std::shared_ptr<BlockDriver> file,
                                  const CheckOptions& options = {}) {
  ByteChannel channel(std::move(file));
  return check_file(&channel, options);
}

bool is_clean(const absl::StatusOr<CheckResult>& result) {
  return result.ok() && result->check_errors == 0 && result->corruptions == 0 &&
         result->leaks == 0;
}

std::string guest_content(const std::string& bytes) {
  OpenOptions options;
  options.read_only = true;
  const auto driver = open_qcow2(in_memory(bytes), options, {});
  if (!driver.ok()) return std::string(driver.status().message());
  const auto content = read_bytes(**driver, {0, kDiskBytes});
  return content.ok() ? *content : std::string(content.status().message());
}

struct Damage {
  std::string name;
  std::string bytes;
};

// What a repair makes good without the loss of a guest's byte.
std::vector<Damage> repairable() {
  const std::string sound = sound_image();
  const Places at(sound);
  std::vector<Damage> all;
  const auto add = [&](const char* name, auto harm) {
    std::string bytes = sound;
    harm(&bytes);
    all.push_back({name, std::move(bytes)});
  };
  const auto flip = [](std::string* bytes, uint64_t where, uint64_t bits) {
    set_big64(bytes, where, get_big64(*bytes, where) ^ bits);
  };
  add("leak", [&](std::string* b) { (*b)[at.block + 90] ^= 3; });
  add("refcount too high", [&](std::string* b) { (*b)[at.block + 13] = 9; });
  add("refcount zero", [&](std::string* b) { (*b)[at.block + 13] = 0; });
  add("no refcounts at all", [&](std::string* b) {
    b->replace(at.block, kClusterBytes, kClusterBytes, '\0');
  });
  add("COPIED clear", [&](std::string* b) { flip(b, at.l2, kEntryCopied); });
  add("COPIED clear in L1",
      [&](std::string* b) { flip(b, at.l1, kEntryCopied); });
  add("refcount table entry unaligned",
      [&](std::string* b) { flip(b, at.refcount_table, 0x200); });
  add("refcount block far away", [&](std::string* b) {
    set_big64(b, at.refcount_table, uint64_t{1} << 50);
  });
  add("refcount block twice",
      [&](std::string* b) { set_big64(b, at.refcount_table + 8, at.block); });
  add("refcount table in the header",
      [&](std::string* b) { set_big64(b, kRefcountTableOffsetOffset, 0); });
  add("refcount table far away", [&](std::string* b) {
    set_big64(b, kRefcountTableOffsetOffset, uint64_t{1} << 40);
  });
  add("marked corrupt and dirty, with a leak", [&](std::string* b) {
    set_big64(b, kIncompatibleFeaturesOffset, 3);
    (*b)[at.block + 90] = 1;
  });
  return all;
}

// ---- Parts ------------------------------------------------------------------

TEST(ReferenceCounter, CountsInEveryWidth) {
  for (uint32_t order = 0; order <= kMaxRefcountOrder; ++order) {
    auto counter = ReferenceCounter::create(100, order);
    ASSERT_TRUE(counter.ok());
    EXPECT_TRUE(counter->add(7));
    EXPECT_EQ(counter->get(6), 0u);
    EXPECT_EQ(counter->get(7), 1u);
    EXPECT_EQ(counter->get(8), 0u);
    counter->set(8, counter->max_refcount());
    EXPECT_FALSE(counter->add(8)) << order;
    EXPECT_EQ(counter->get(8), counter->max_refcount());
    EXPECT_EQ(counter->get(7), 1u);
    EXPECT_EQ(counter->get(9), 0u);
    counter->set(8, 0);
    EXPECT_EQ(counter->get(8), 0u);
    EXPECT_TRUE(counter->add(99));
    counter->clear();
    EXPECT_EQ(counter->get(99), 0u);
  }
}

TEST(ReferenceCounter, LosesNothingAmongThreads) {
  auto counter = ReferenceCounter::create(8, /*refcount_order=*/4);
  ASSERT_TRUE(counter.ok());
  auto bits = ReferenceCounter::create(8, /*refcount_order=*/1);
  ASSERT_TRUE(bits.ok());
  const auto executor = make_executor({.width = 4});
  std::atomic<int> full{0};
  run_pieces(executor.get(), 400, 4, [&](size_t i) {
    counter->add(i % 8);
    if (!bits->add(i % 8)) ++full;
  });
  for (uint64_t i = 0; i < 8; ++i) {
    EXPECT_EQ(counter->get(i), 50u);
    EXPECT_EQ(bits->get(i), 3u);
  }
  EXPECT_EQ(full.load(), 400 - 8 * 3);
}

TEST(RunPieces, RunsEachOnce) {
  for (const size_t width : {0, 1, 4}) {
    std::unique_ptr<Executor> executor;
    if (width > 0) executor = make_executor({.width = width});
    for (const size_t count : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> runs(count);
      run_pieces(executor.get(), count, 3, [&](size_t i) { ++runs[i]; });
      for (const std::atomic<int>& ran : runs) EXPECT_EQ(ran.load(), 1);
    }
  }
}

TEST(RunPieces, NeedsNoFreeWorker) {
  // Each piece of the outer run occupies a worker, and runs pieces of its own.
  const auto executor = make_executor({.width = 2});
  std::atomic<int> ran{0};
  run_pieces(executor.get(), 6, 2, [&](size_t) {
    run_pieces(executor.get(), 10, 2, [&](size_t) { ++ran; });
  });
  EXPECT_EQ(ran.load(), 60);
}

// ---- The check --------------------------------------------------------------

TEST(Check, RepairsWithoutTouchingTheGuestsData) {
  const std::string content = guest_content(sound_image());
  ASSERT_EQ(content.size(), kDiskBytes);
  for (const Damage& damage : repairable()) {
    SCOPED_TRACE(damage.name);
    const auto file = in_memory(damage.bytes);
    const auto found = check(file);
    const bool unreadable = found.ok() && found->check_errors != 0;
    EXPECT_TRUE(unreadable || !is_clean(found)) << found.status();
    const auto repaired = check(file, repair_all());
    ASSERT_TRUE(is_clean(repaired)) << repaired.status();
    EXPECT_GT(repaired->corruptions_fixed + repaired->leaks_fixed, 0u);
    EXPECT_TRUE(is_clean(check(file)));
    const absl::Status judged =
        check_image_bytes(file->content(), Leaks::kForbidden);
    EXPECT_TRUE(judged.ok()) << judged;
    EXPECT_EQ(guest_content(file->content()), content);
    EXPECT_EQ(get_big64(file->content(), kIncompatibleFeaturesOffset), 0u);
  }
}

TEST(Check, WritesNothingUnlessAsked) {
  for (const Damage& damage : repairable()) {
    const auto file =
        in_memory(damage.bytes, {.length_bytes = damage.bytes.size()});
    const auto result = check(file);
    EXPECT_EQ(file->content(), damage.bytes) << damage.name;
  }
}

// After a cut the image must still be one that a repair makes good.
TEST(Check, ARepairSurvivesAPowerCut) {
  const std::string content = guest_content(sound_image());
  std::mt19937_64 random(test_seed());
  for (const Damage& damage : repairable()) {
    auto file =
        std::make_shared<LoggingDriver>(damage.bytes, [](int) { return true; });
    ASSERT_TRUE(is_clean(check(file, repair_all()))) << damage.name;
    const std::vector<LogEntry> log = file->entries();
    CutDisk disk(damage.bytes, log);
    for (size_t moment = 0; moment <= log.size(); ++moment) {
      SCOPED_TRACE(absl::StrCat(damage.name, ", cut at ", moment));
      const auto again = in_memory(disk.cut(moment, &random));
      const auto repaired = check(again, repair_all());
      EXPECT_TRUE(is_clean(repaired)) << repaired.status();
      EXPECT_EQ(guest_content(again->content()), content);
    }
  }
}

TEST(Check, ARepairSurvivesAnErrorOfEachWrite) {
  const std::string content = guest_content(sound_image());
  for (const Damage& damage : repairable()) {
    for (int nth = 1;; ++nth) {
      SCOPED_TRACE(absl::StrCat(damage.name, ", write ", nth));
      const auto memory = in_memory(damage.bytes);
      const auto file = std::make_shared<ObservingDriver>(memory);
      file->fail_at({.kind = AccessKind::kWrite}, ENOSPC, nth);
      const auto result = check(file, repair_all());
      if (file->failure_count() == 0) {
        EXPECT_TRUE(is_clean(result));
        break;
      }
      EXPECT_FALSE(is_clean(result));
      EXPECT_TRUE(is_clean(check(memory, repair_all())));
      EXPECT_EQ(guest_content(memory->content()), content);
    }
  }
}

TEST(Check, AnUnreadableTableKeepsRepairsFromRefcounts) {
  std::string bytes = sound_image();
  const Places at(bytes);
  bytes[at.block + 91] = 3;  // a leak
  const auto memory = in_memory(bytes, {.length_bytes = bytes.size()});
  const auto file = std::make_shared<ObservingDriver>(memory);
  file->fail_at({.purpose = Purpose::kL2Load}, EIO, 1,
                ObservingDriver::Repeat::kFromThenOn);
  const auto result = check(file, repair_all());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->check_errors, 0u);
  EXPECT_EQ(memory->content(), bytes);
}

TEST(Check, StopsWhenItIsCancelled) {
  const auto file = in_memory(sound_image());
  const std::atomic<bool> cancelled{true};
  for (const bool repair : {false, true}) {
    CheckOptions options = repair ? repair_all() : CheckOptions();
    options.cancelled = &cancelled;
    EXPECT_EQ(check(file, options).status().code(),
              absl::StatusCode::kCancelled);
  }
  // In the middle, from where it reports its progress.
  std::atomic<bool> soon{false};
  CheckOptions options;
  options.cancelled = &soon;
  options.progress = [&soon](uint64_t, uint64_t) { soon = true; };
  EXPECT_EQ(check(file, options).status().code(), absl::StatusCode::kCancelled);
}

TEST(Check, ReportsProgressThatEndsAtItsTotal) {
  const auto executor = make_executor({.width = 2});
  uint64_t last = 0;
  uint64_t last_total = 0;
  CheckOptions options;
  options.executor = executor.get();
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done;
    last_total = total;
  };
  ASSERT_TRUE(is_clean(check(in_memory(sound_image()), options)));
  EXPECT_GT(last, 0u);
  EXPECT_EQ(last, last_total);
}

// The file's length sizes the counter, whatever the image says.
TEST(Check, ALongSparseFileTakesLittle) {
  const std::string sound = sound_image();
  const auto file =
      in_memory(sound, {.length_bytes = uint64_t{1} << 36});  // 16 Mi clusters
  const auto result = check(file);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(is_clean(result));
  EXPECT_LT(result->image_end_offset, sound.size() + kClusterBytes);
  // More clusters than QEMU counts.
  const auto endless = in_memory(sound, {.length_bytes = uint64_t{1} << 60});
  EXPECT_FALSE(check(endless).ok());
}

TEST(Check, ADeviceThatCannotGrowStaysAsItWas) {
  std::string bytes = sound_image();
  bytes[Places(bytes).block + 13] = 0;
  const auto file = in_memory(
      bytes, {.length_bytes = bytes.size(), .max_length_bytes = bytes.size()});
  EXPECT_EQ(check(file, repair_all()).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(file->content(), bytes);
}

// ---- Through the driver -----------------------------------------------------

TEST(Check, OfAnOpenImageSeesWhatIsOnlyCached) {
  MemoryImage image(
      {.size_bytes = kDiskBytes, .create = {{"cluster_size", "4096"}}});
  ASSERT_TRUE(image.write({0, 65536}, 7).ok());
  EXPECT_TRUE(image.driver().capabilities().has(Capability::kCheck));
  const auto result = image.driver().check({});
  ASSERT_TRUE(is_clean(result)) << result.status();
  EXPECT_EQ(result->allocated_clusters, 16u);
}

TEST(Check, AnOpenImageGoesOnAfterARepair) {
  std::string bytes = sound_image();
  bytes[Places(bytes).block + 13] = 0;
  MemoryImage image({.size_bytes = kDiskBytes, .bytes = bytes});
  const auto result = image.driver().check(repair_all());
  ASSERT_TRUE(is_clean(result)) << result.status();
  EXPECT_TRUE(image.reads_as({0, 65536}, 1));
  ASSERT_TRUE(image.write({900000 / 512 * 512, 65536}, 8).ok());
  EXPECT_TRUE(image.reads_as({900000 / 512 * 512, 65536}, 8));
  const absl::Status judged = image.close_and_check();
  EXPECT_TRUE(judged.ok()) << judged;
}

TEST(Check, ADirtyImageIsRepairedWhenItIsOpenedForWriting) {
  std::string dirty = sound_image();
  dirty[Places(dirty).block + 13] = 0;
  set_big64(&dirty, kIncompatibleFeaturesOffset, kIncompatibleDirty);
  const auto reader = in_memory(dirty);
  OpenOptions options;
  options.read_only = true;
  ASSERT_TRUE(open_qcow2(reader, options, {}).ok());
  EXPECT_EQ(reader->content(), dirty);

  MemoryImage image({.size_bytes = kDiskBytes, .bytes = dirty});
  EXPECT_FALSE(image.driver().info().dirty);
  EXPECT_TRUE(image.reads_as({0, 65536}, 1));
  ASSERT_TRUE(image.write({4096, 65536}, 8).ok());
  const absl::Status judged = image.close_and_check();
  EXPECT_TRUE(judged.ok()) << judged;

  // What no repair makes good keeps nobody from the rest.
  const Places at(dirty);
  set_big64(&dirty, at.l2, get_big64(dirty, at.l2) | 512);
  MemoryImage rest({.size_bytes = kDiskBytes, .bytes = dirty});
  EXPECT_FALSE(rest.driver().info().dirty);
  ASSERT_TRUE(rest.write({8192, 4096}, 8).ok());
  EXPECT_TRUE(rest.reads_as({8192, 4096}, 8));
  EXPECT_FALSE(read_bytes(rest.driver(), {0, 4096}).ok());
  EXPECT_TRUE(rest.close().ok());
  EXPECT_EQ(get_big64(rest.memory().content(), kIncompatibleFeaturesOffset) &
                kIncompatibleDirty,
            0u);
}

// As long as it is not known what is referenced, nothing may be allocated.
TEST(Check, ADirtyImageThatCannotBeCheckedStaysClosed) {
  std::string dirty = sound_image();
  set_big64(&dirty, kIncompatibleFeaturesOffset, kIncompatibleDirty);
  const auto file = std::make_shared<ObservingDriver>(in_memory(dirty));
  file->fail_at({.purpose = Purpose::kL2Load}, EIO, 1);
  EXPECT_EQ(open_qcow2(file, {}, {}).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(Check, OpenedForItAnImageIsGoodForNothingElse) {
  std::string bytes = sound_image();
  set_big64(&bytes, kIncompatibleFeaturesOffset, kIncompatibleCorrupt);
  OpenOptions options;
  EXPECT_FALSE(open_qcow2(in_memory(bytes), options, {}).ok());
  options.for_check = true;
  const auto driver = open_qcow2(in_memory(bytes), options, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ(read_bytes(**driver, {0, 512}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(is_clean((*driver)->check(repair_all())));
  EXPECT_TRUE((*driver)->close().ok());
}

}  // namespace
}  // namespace spindle::qcow2

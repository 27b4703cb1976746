// Amendments through errors at each access, power cuts at each write, and
// requests side by side: the disk and its snapshots read as before.
#include "formats/qcow2/amend.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/amend.h"
#include "engine/block_driver.h"
#include "engine/byte_order.h"
#include "engine/format.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/qcow2_driver.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::check_image_bytes;
using testing::CutDisk;
using testing::Leaks;
using testing::LoggingDriver;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::ObservingDriver;
using testing::read_bytes;
using testing::write_fill;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kDiskBytes = 40 * kCluster;

AmendOptions to(OptionMap changes) {
  AmendOptions options;
  options.changes = std::move(changes);
  return options;
}

std::string disk_of(BlockDriver& driver) {
  const auto content = read_bytes(driver, {0, kDiskBytes});
  return content.ok() ? *content : content.status().ToString();
}

// What a scenario starts from, and what is asked for.
struct Scenario {
  const char* name;
  OptionMap create;
  bool backing = false;
  bool snapshots = false;
  OptionMap changes;
};

const Scenario kScenarios[] = {
    {"down", {{"compat", "1.1"}}, false, true, {{"compat", "0.10"}}},
    {"down, over a backing file",
     {{"compat", "1.1"}},
     true,
     true,
     {{"compat", "0.10"}}},
    {"up", {{"compat", "0.10"}}, false, true, {{"compat", "1.1"}}},
    {"up, over a backing file",
     {{"compat", "0.10"}},
     true,
     false,
     {{"compat", "1.1"}}},
    {"wider refcounts", {}, false, true, {{"refcount_bits", "64"}}},
    {"narrower refcounts", {}, true, false, {{"refcount_bits", "1"}}},
    {"longer, wider refcounts",
     {},
     true,
     false,
     {{"size", absl::StrCat(2 * kDiskBytes)}, {"refcount_bits", "64"}}},
    {"everything up",
     {{"compat", "0.10"}},
     true,
     true,
     {{"compat", "1.1"}, {"refcount_bits", "32"}, {"lazy_refcounts", "on"}}},
    {"everything down",
     {{"refcount_bits", "64"}, {"lazy_refcounts", "on"}},
     true,
     true,
     {{"compat", "0.10"}, {"refcount_bits", "16"}, {"lazy_refcounts", "off"}}},
};

SnapshotInfo named(const std::string& name) {
  SnapshotInfo info;
  info.name = name;
  return info;
}

MemoryImageOptions options_of(const Scenario& scenario) {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create = scenario.create;
  options.create["cluster_size"] = absl::StrCat(kCluster);
  if (scenario.backing) options.backing = std::string(kDiskBytes, '\xbb');
  return options;
}

// Data, zeroes of each kind, holes; some of it shared with snapshots.
MemoryImageOptions start_of(const Scenario& scenario) {
  MemoryImageOptions options = options_of(scenario);
  MemoryImage image(options);
  BlockDriver& driver = image.driver();
  const auto zero = [&](ByteRange range, bool may_unmap) {
    // Version 2 has none over a backing file.
    driver.write_zeroes(range, {.may_unmap = may_unmap}).IgnoreError();
  };
  EXPECT_TRUE(image.write({0, 8 * kCluster}, 1).ok());
  EXPECT_TRUE(image.write({20 * kCluster + 512, 3 * kCluster}, 2).ok());
  zero({2 * kCluster, 2 * kCluster}, false);
  zero({4 * kCluster, kCluster}, true);
  if (scenario.snapshots) {
    EXPECT_TRUE(driver.create_snapshot(named("a")).ok());
    EXPECT_TRUE(image.write({2 * kCluster, 512}, 3).ok());
    zero({kCluster, kCluster}, false);  // its data stay the snapshot's
    zero({30 * kCluster, 2 * kCluster}, true);
    EXPECT_TRUE(driver.create_snapshot(named("b")).ok());
    EXPECT_TRUE(image.write({30 * kCluster, kCluster}, 4).ok());
  }
  zero({21 * kCluster, kCluster}, false);
  EXPECT_TRUE(image.discard({6 * kCluster, kCluster}).ok());
  EXPECT_TRUE(image.close().ok());
  options.bytes = image.memory().content();
  return options;
}

// The disk, and the disk as each snapshot keeps it.
std::vector<std::string> all_disks(const MemoryImage& image,
                                   const std::string& bytes, bool snapshots) {
  std::vector<std::string> disks;
  const auto copy = image.open_copy(bytes);
  disks.push_back(copy.ok() ? disk_of(**copy) : copy.status().ToString());
  for (const char* name : {"a", "b"}) {
    if (!snapshots) break;
    auto memory = std::make_shared<testing::MemoryDriver>();
    memory->set_content(0, bytes);
    const auto opened = open_qcow2(memory, OpenOptions(), image.context());
    if (!opened.ok()) {
      disks.push_back(opened.status().ToString());
      continue;
    }
    const absl::Status applied = (*opened)->apply_snapshot(name);
    disks.push_back(applied.ok() ? disk_of(**opened) : applied.ToString());
  }
  return disks;
}

class Amend : public ::testing::TestWithParam<Scenario> {};

TEST_P(Amend, ChangesWhatIsAskedForAndNothingElse) {
  const MemoryImageOptions options = start_of(GetParam());
  MemoryImage image(options);
  const auto before = all_disks(image, options.bytes, GetParam().snapshots);
  const absl::Status done = image.driver().amend(to(GetParam().changes));
  ASSERT_TRUE(done.ok()) << done;
  // The image goes on.
  EXPECT_TRUE(disk_of(image.driver()) == before[0]);
  ASSERT_TRUE(image.flush().ok());
  EXPECT_TRUE(all_disks(image, image.memory().content(),
                        GetParam().snapshots) == before);
  ASSERT_TRUE(image.write({9 * kCluster + 512, kCluster}, 7).ok());
  EXPECT_TRUE(image.reads_as({9 * kCluster + 512, kCluster}, 7));
  ASSERT_TRUE(image.close().ok());
  EXPECT_EQ(check_image_bytes(image.memory().content(), Leaks::kForbidden),
            absl::OkStatus());
}

TEST_P(Amend, AnErrorLeavesTheDiskAsItWas) {
  const MemoryImageOptions options = start_of(GetParam());
  int failures = 0;
  for (const auto repeat :
       {ObservingDriver::Repeat::kOnce, ObservingDriver::Repeat::kFromThenOn}) {
    // Each access fails with either error.
    for (int attempt = 2;; ++attempt) {
      const int nth = attempt / 2;
      const int error_number = attempt % 2 == 0 ? EIO : ENOSPC;
      SCOPED_TRACE(absl::StrCat("access ", nth, ", errno ", error_number));
      MemoryImage image(options);
      const std::string before = disk_of(image.driver());
      image.file().fail_at({}, error_number, nth, repeat);
      const absl::Status done = image.driver().amend(to(GetParam().changes));
      if (image.file().failure_count() == 0) break;
      ++failures;
      image.file().clear_failures();
      // An image that could not be loaded again is inactive.
      const auto now = read_bytes(image.driver(), {0, kDiskBytes});
      EXPECT_TRUE(!now.ok() || *now == before) << done;
      image.close().IgnoreError();
      const std::string bytes = image.memory().content();
      const auto copy = image.open_copy(bytes);
      ASSERT_TRUE(copy.ok()) << copy.status() << "\n" << done;
      ASSERT_TRUE(disk_of(**copy) == before) << done;
      const absl::Status checked = check_image_bytes(bytes, Leaks::kAllowed);
      ASSERT_TRUE(checked.ok()) << checked << "\n" << done;
    }
  }
  EXPECT_GT(failures, 10);
}

// The feature names go beyond the first sector: a header without them takes two
// writes.
TEST(AmendErrors, PutTheHeaderBack) {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create["cluster_size"] = "65536";
  options.backing = std::string(kDiskBytes, '\xbb');
  int failures = 0;
  for (int nth = 1;; ++nth) {
    SCOPED_TRACE(nth);
    MemoryImage image(options);
    const std::string before = image.memory().content({0, 65536});
    image.file().fail_at({.purpose = Purpose::kHeaderUpdate}, ENOSPC, nth);
    const absl::Status done = image.driver().amend(to({{"compat", "0.10"}}));
    if (image.file().failure_count() == 0) break;
    ++failures;
    EXPECT_EQ(done.code(), absl::StatusCode::kResourceExhausted) << done;
    EXPECT_TRUE(image.memory().content({0, 65536}) == before);
  }
  EXPECT_EQ(failures, 2);
}

TEST_P(Amend, APowerCutLeavesTheDiskAsItWas) {
  const Scenario& scenario = GetParam();
  const MemoryImageOptions options = start_of(scenario);
  MemoryImage image(options);
  const auto before = all_disks(image, options.bytes, scenario.snapshots);
  auto logging =
      std::make_shared<LoggingDriver>(options.bytes, [](int) { return true; });
  {
    const auto driver = open_qcow2(logging, OpenOptions(), image.context());
    ASSERT_TRUE(driver.ok()) << driver.status();
    ASSERT_TRUE((*driver)->amend(to(scenario.changes)).ok());
    ASSERT_TRUE((*driver)->close().ok());
  }
  std::mt19937_64 random(testing::test_seed());
  const size_t moments = logging->entries().size();
  CutDisk disk(options.bytes, logging->entries());
  EXPECT_GT(moments, 3u);
  for (size_t moment = 0; moment <= moments; ++moment) {
    for (int again = 0; again < 3; ++again) {
      SCOPED_TRACE(absl::StrCat("cut after ", moment, " of ", moments));
      const std::string bytes = disk.cut(moment, &random);
      const absl::Status checked = check_image_bytes(bytes, Leaks::kAllowed);
      ASSERT_TRUE(checked.ok()) << checked;
      ASSERT_TRUE(
          all_disks(image, bytes, scenario.snapshots && again == 0).front() ==
          before.front());
      if (scenario.snapshots && again == 0) {
        ASSERT_TRUE(all_disks(image, bytes, true) == before);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scenarios, Amend, ::testing::ValuesIn(kScenarios));

// ---- What is refused --------------------------------------------------------

TEST(AmendRefuses, AndTouchesNothing) {
  const struct {
    OptionMap create;
    bool snapshots;
    OptionMap changes;
    const char* message;
  } cases[] = {
      {{}, false, {{"compat", "0.9"}}, "Unknown compatibility level 0.9"},
      {{}, false, {{"cluster_size", "4k"}}, "Invalid parameter 'cluster_size'"},
      {{{"refcount_bits", "8"}},
       false,
       {{"compat", "0.10"}},
       "compat=0.10 requires refcount_bits=16"},
      {{},
       false,
       {{"compat", "0.10"}, {"lazy_refcounts", "on"}},
       "Lazy refcounts only supported"},
      {{}, true, {{"refcount_bits", "1"}}, "has a refcount of 3"},
      {{}, false, {{"backing_file", "x"}}, "Cannot amend the backing file"},
      {{}, false, {{"data_file", "x"}}, "data-file can only be set"},
      {{}, false, {{"size", "1000"}}, "multiple of 512"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.message);
    const MemoryImageOptions options =
        start_of({"", c.create, false, c.snapshots, {}});
    MemoryImage image(options);
    const absl::Status done = image.driver().amend(to(c.changes));
    EXPECT_NE(std::string(done.message()).find(c.message), std::string::npos)
        << done;
    EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
    ASSERT_TRUE(image.close().ok());
    EXPECT_EQ(check_image_bytes(image.memory().content(), Leaks::kForbidden),
              absl::OkStatus());
    if (!c.snapshots) {
      EXPECT_TRUE(image.memory().content() == options.bytes);
    }
  }
}

TEST(AmendRefuses, AReadOnlyImage) {
  MemoryImage image(start_of(kScenarios[0]));
  ASSERT_TRUE(image.close().ok());
  ASSERT_TRUE(image.open(/*read_only=*/true).ok());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kAmend));
  EXPECT_TRUE(
      absl::IsPermissionDenied(image.driver().amend(to({{"compat", "0.10"}}))));
}

TEST(AmendProgress, GoesToTheEndAndCanBeCancelled) {
  MemoryImage image(start_of(kScenarios[1]));
  AmendOptions options = to({{"refcount_bits", "64"}});
  uint64_t last = 0;
  uint64_t all = 0;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_LE(last, done);
    EXPECT_LE(done, total);
    last = done;
    all = total;
  };
  ASSERT_TRUE(image.driver().amend(options).ok());
  EXPECT_EQ(last, all);
  EXPECT_NE(all, 0u);

  std::atomic<bool> cancelled{true};
  for (const OptionMap& changes :
       {OptionMap{{"refcount_bits", "16"}},
        OptionMap{{"refcount_bits", "16"}, {"compat", "0.10"}}}) {
    AmendOptions stopped = to(changes);
    stopped.cancelled = &cancelled;
    const std::string before = disk_of(image.driver());
    EXPECT_TRUE(absl::IsCancelled(image.driver().amend(stopped)));
    EXPECT_TRUE(disk_of(image.driver()) == before);
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- Names that reach beyond the first sector -------------------------------

TEST(AmendHeader, LongNamesSurviveAPowerCut) {
  for (const size_t length :
       {size_t{60}, size_t{300}, size_t{480}, size_t{1000}}) {
    SCOPED_TRACE(length);
    // The names of the image are not opened here.
    const std::string name(length, 'n');
    MemoryImageOptions options;
    options.size_bytes = kDiskBytes;
    options.create = {{"compat", "0.10"}, {"cluster_size", "65536"}};
    MemoryImage image(options);
    ASSERT_TRUE(image.write({0, kCluster}, 1).ok());
    ASSERT_TRUE(image.close().ok());
    std::string start = image.memory().content();
    // As `rebase -u` would do it.
    store_big64(start.data() + kBackingFileOffsetOffset, 1024);
    store_big32(start.data() + kBackingFileSizeOffset,
                static_cast<uint32_t>(length));
    start.replace(1024, length, name);
    for (const char* compat : {"1.1", "0.10"}) {
      auto logging =
          std::make_shared<LoggingDriver>(start, [](int) { return true; });
      OpenOptions open;
      open.open_backing = false;
      {
        const auto driver = open_qcow2(logging, open, OpenContext());
        ASSERT_TRUE(driver.ok()) << driver.status();
        ASSERT_TRUE((*driver)->amend(to({{"compat", compat}})).ok());
        ASSERT_TRUE((*driver)->close().ok());
      }
      std::mt19937_64 random(testing::test_seed());
      CutDisk disk(start, logging->entries());
      std::string bytes;
      for (size_t moment = 0; moment <= logging->entries().size(); ++moment) {
        for (int again = 0; again < 8; ++again) {
          bytes = disk.cut(moment, &random);
          auto memory = std::make_shared<testing::MemoryDriver>();
          memory->set_content(0, bytes);
          const auto driver = open_qcow2(memory, open, OpenContext());
          ASSERT_TRUE(driver.ok()) << driver.status();
          ASSERT_EQ((*driver)->info().backing_filename, name);
          ASSERT_TRUE(testing::reads_as(**driver, {0, kCluster}, 1));
        }
      }
      start = bytes;
    }
  }
}

// ---- Side by side -----------------------------------------------------------

TEST(AmendStress, RequestsGoOn) {
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create = {{"cluster_size", absl::StrCat(kCluster)}};
  MemoryImage image(options);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  constexpr uint64_t kThreads = 3;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(testing::test_seed() + t);
      while (!stop) {
        // Clusters of its own.
        const uint64_t at = (random() % 13 * kThreads + t) * kCluster;
        const auto value = static_cast<uint8_t>(random() % 255 + 1);
        EXPECT_TRUE(write_fill(image.driver(), {at, kCluster}, value).ok());
        EXPECT_TRUE(testing::reads_as(image.driver(), {at, kCluster}, value));
        if (random() % 4 == 0) {
          EXPECT_TRUE(image.driver().discard({at, kCluster}).ok());
          EXPECT_TRUE(testing::reads_as(image.driver(), {at, kCluster}, 0));
        }
      }
    });
  }
  for (int i = 0; i < 12; ++i) {
    const OptionMap changes[] = {{{"compat", "0.10"}, {"refcount_bits", "16"}},
                                 {{"compat", "1.1"}, {"lazy_refcounts", "on"}},
                                 {{"refcount_bits", "1"}},
                                 {{"refcount_bits", "64"}}};
    const absl::Status done = image.driver().amend(to(changes[i % 4]));
    EXPECT_TRUE(done.ok()) << done;
    EXPECT_TRUE(image.driver().capabilities().has(Capability::kAmend));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::qcow2

// Images with an external data file become longer and shorter: the data file
// follows, and an error at any access to either file leaves the disk as it was.
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "tests/formats/qcow2/data_image.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/failing_accesses.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kSize = 8 * kCluster;

OptionMap options_of(const char* raw, const char* extended_l2 = "off") {
  const bool extended = std::string(extended_l2) == "on";
  return {{"cluster_size", extended ? "16384" : "4096"},
          {"data_file_raw", raw},
          {"extended_l2", extended_l2}};
}

std::string disk_of(BlockDriver& driver) {
  const auto content = read_bytes(driver, {0, driver.length_bytes()});
  return content.ok() ? *content : content.status().ToString();
}

constexpr Preallocation kModes[] = {
    Preallocation::kOff, Preallocation::kMetadata, Preallocation::kFalloc,
    Preallocation::kFull};

struct Kind {
  const char* raw;
  const char* extended_l2;
};

class DataFileResize : public ::testing::TestWithParam<Kind> {
 protected:
  OptionMap options() const {
    return options_of(GetParam().raw, GetParam().extended_l2);
  }
  bool raw() const { return std::string(GetParam().raw) == "on"; }
  // After each step.
  void expect(DataImage* image, const std::string& disk) const {
    EXPECT_TRUE(disk_of(image->driver()) == disk);
    EXPECT_EQ(image->data_memory().length_bytes(), disk.size());
    if (raw()) {
      EXPECT_TRUE(image->data_memory().content() == disk);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Kinds, DataFileResize,
                         ::testing::Values(Kind{"off", "off"},
                                           Kind{"on", "off"}, Kind{"off", "on"},
                                           Kind{"on", "on"}),
                         [](const auto& info) {
                           return absl::StrCat("raw_", info.param.raw,
                                               "_extended_l2_",
                                               info.param.extended_l2);
                         });

TEST_P(DataFileResize, TheDataFileFollowsTheDisk) {
  for (const Preallocation mode : kModes) {
    // Whole clusters, and not: 512 bytes more, within one cluster, less.
    for (const uint64_t length :
         {2 * kSize, kSize + 512, 3 * kCluster, 3 * kCluster + 512}) {
      SCOPED_TRACE(
          absl::StrCat("mode ", static_cast<int>(mode), " to ", length));
      DataImage image(kSize, options());
      std::string disk(kSize, 7);
      ASSERT_EQ(write_fill(image.driver(), {0, kSize}, 7), absl::OkStatus());
      const bool shrinks = length < kSize;
      ASSERT_EQ(
          image.driver().resize(length, shrinks ? Preallocation::kOff : mode),
          absl::OkStatus());
      disk.resize(length);
      expect(&image, disk);
      // What was cut off does not come back.
      ASSERT_EQ(image.driver().resize(3 * kSize, mode), absl::OkStatus());
      disk.resize(3 * kSize);
      expect(&image, disk);
      ASSERT_EQ(write_fill(image.driver(), {3 * kSize - 1024, 1024}, 8),
                absl::OkStatus());
      disk.replace(3 * kSize - 1024, 1024, 1024, 8);
      expect(&image, disk);
      ASSERT_EQ(image.close(), absl::OkStatus());
      EXPECT_EQ(image.check(), absl::OkStatus());
      ASSERT_EQ(image.open(), absl::OkStatus());
      expect(&image, disk);
    }
  }
}

// QEMU would show it.
TEST_P(DataFileResize, WhatADataFileHasBehindTheDiskDoesNotAppear) {
  for (const Preallocation mode : kModes) {
    SCOPED_TRACE(static_cast<int>(mode));
    DataImage image(kSize, options());
    ASSERT_EQ(write_fill(image.driver(), {0, kSize}, 7), absl::OkStatus());
    image.data_memory().set_content(kSize, std::string(4 * kSize, 'S'));
    ASSERT_EQ(image.driver().resize(2 * kSize + 512, mode), absl::OkStatus());
    std::string disk(kSize, 7);
    disk.resize(2 * kSize + 512);
    expect(&image, disk);
    ASSERT_EQ(image.close(), absl::OkStatus());
    EXPECT_EQ(image.check(), absl::OkStatus());
  }
}

TEST_P(DataFileResize, AmendChangesTheSizeToo) {
  DataImage image(kSize, options());
  ASSERT_EQ(write_fill(image.driver(), {0, kSize}, 7), absl::OkStatus());
  std::string disk(kSize, 7);
  for (const uint64_t length : {2 * kSize, 3 * kCluster}) {
    AmendOptions amend;
    amend.changes["size"] = absl::StrCat(length);
    ASSERT_EQ(image.driver().amend(amend), absl::OkStatus());
    disk.resize(length);
    expect(&image, disk);
  }
  ASSERT_EQ(image.close(), absl::OkStatus());
  EXPECT_EQ(image.check(), absl::OkStatus());
}

TEST_P(DataFileResize, EveryAccessMayFail) {
  const struct {
    const char* name;
    uint64_t length;
    Preallocation mode;
    bool stale;
  } cases[] = {{"grow", 5 * kSize + 512, Preallocation::kOff, false},
               {"grow over stale bytes", 2 * kSize, Preallocation::kOff, true},
               {"metadata", 2 * kSize, Preallocation::kMetadata, false},
               {"full", 2 * kSize, Preallocation::kFull, false},
               {"shrink", kCluster + 512, Preallocation::kOff, false}};
  int judged = 0;
  for (const auto& c : cases) {
    for (const bool in_data : {false, true}) {
      SCOPED_TRACE(absl::StrCat(c.name, in_data ? ", data file" : ""));
      const std::string before(kSize, 7);
      std::string after = before;
      after.resize(c.length);
      const int failures = for_each_failing_access([&](const FailAt& fail) {
        DataImage image(kSize, options());
        EXPECT_EQ(write_fill(image.driver(), {0, kSize}, 7), absl::OkStatus());
        EXPECT_EQ(image.driver().flush(), absl::OkStatus());
        if (c.stale)
          image.data_memory().set_content(kSize, std::string(kSize, 'S'));
        ObservingDriver& failing = in_data ? image.data() : image.file();
        fail.arm(&failing);
        const absl::Status done = image.driver().resize(c.length, c.mode);
        if (failing.failure_count() == 0) return false;
        failing.clear_failures();
        const std::string now = disk_of(image.driver());
        EXPECT_TRUE(now == (done.ok() ? after : before)) << done;
        if (raw()) {
          // Cutting it is advice.
          EXPECT_TRUE(image.data_memory().content({0, now.size()}) == now);
        }
        const bool unsure = !done.ok() && image.driver().info().corrupt;
        image.close().IgnoreError();
        // A process for each takes its time.
        if (++judged % 7 == 0) {
          EXPECT_EQ(image.check(Leaks::kAllowed), absl::OkStatus()) << done;
        }
        EXPECT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
        const std::string later = disk_of(image.driver());
        EXPECT_TRUE(later == now ||
                    (unsure && (later == before || later == after)))
            << done;
        return true;
      });
      EXPECT_GT(failures, 3);
    }
  }
}

}  // namespace
}  // namespace spindle::testing

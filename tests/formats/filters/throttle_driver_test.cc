#include "formats/filters/throttle_driver.h"

#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "engine/block_device.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

std::shared_ptr<BlockDriver> memory() {
  return std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 1 << 20});
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_throttle(
    const OptionMap& own) {
  OpenOptions options;
  options.driver_options = own;
  return throttle_filter()->open(memory(), options);
}

TEST(ThrottleDriver, TakesQemusNames) {
  FilterOptions options("throttle", {{"iops-read", "10"},
                                     {"iops-read-max", "20"},
                                     {"iops-read-max-length", "3"},
                                     {"iops-write", "7"},
                                     {"bps-total", "1M"},
                                     {"bps-total-max", "2M"},
                                     {"iops-size", "4k"}});
  const auto limits = take_throttle_limits(&options);
  ASSERT_TRUE(limits.ok()) << limits.status();
  EXPECT_EQ(limits->iops_read,
            (BucketLimit{.average = 10, .max = 20, .burst_length_seconds = 3}));
  EXPECT_EQ(limits->iops_write.average, 7u);
  EXPECT_EQ(limits->bps_total.max, 2u << 20);
  EXPECT_EQ(limits->iops_size_bytes, 4096u);
  EXPECT_FALSE(limits->iops_total.average != 0);
}

TEST(ThrottleDriver, RefusesWhatMakesNoSense) {
  const struct {
    OptionMap options;
    absl::string_view says;
  } cases[] = {
      {{{"foo", "1"}}, "'foo'"},
      {{{"iops-total", "many"}}, "'iops-total'"},
      {{{"iops-total", "5"}, {"iops-read", "5"}}, "at the same time"},
      {{{"iops-total-max", "5"}}, "no rate"},
      {{{"bps-read", "5"}, {"bps-read-max-length", "0"}}, "burst length of 0"},
  };
  for (const auto& one : cases) {
    const auto driver = open_throttle(one.options);
    ASSERT_FALSE(driver.ok()) << one.says;
    EXPECT_TRUE(absl::StrContains(driver.status().message(), one.says))
        << driver.status();
  }
}

TEST(ThrottleDriver, WaitsItselfWhereNobodyTakesTheLimitsOver) {
  const auto driver = open_throttle({{"iops-write", "100"}});
  ASSERT_TRUE(driver.ok()) << driver.status();
  EXPECT_EQ((*driver)->format_name(), "throttle");
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_EQ((*driver)->try_write(qiov, Sector(0)), 0u);
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 0u);
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE((*driver)->write(qiov, Sector(0)).ok());
    EXPECT_TRUE((*driver)->read(qiov, Sector(0)).ok());
    EXPECT_TRUE((*driver)->discard({0, 512}).ok());
    EXPECT_TRUE((*driver)->write_zeroes({0, 512}, {}).ok());
  }
  EXPECT_TRUE((*driver)->flush().ok());
  // 15 changes, of which 11 go at once.
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(35));
}

TEST(ThrottleDriver, ADeviceTakesTheLimitsOver) {
  const auto driver = open_throttle({{"iops-total", "1"}});
  ASSERT_TRUE(driver.ok()) << driver.status();
  const auto executor = make_executor(ExecutorOptions{});
  const auto device = *BlockDevice::create(*driver, executor.get());
  // The driver no longer waits: or this would take a minute.
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  for (int i = 0; i < 60; ++i)
    EXPECT_TRUE((*driver)->write(qiov, Sector(0)).ok());
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 512u);
}

TEST(ThrottleDriver, AGroupIsSharedByItsName) {
  const auto group_of = [](const OptionMap& options) {
    const auto driver = open_throttle(options);
    EXPECT_TRUE(driver.ok()) << driver.status();
    return std::static_pointer_cast<ThrottleDriver>(*driver)
        ->take_over_throttle();
  };
  const OptionMap limited = {{"throttle-group", "g"}, {"iops-total", "9"}};
  const auto first = group_of(limited);
  EXPECT_EQ(group_of(limited), first);
  EXPECT_EQ(group_of({{"throttle-group", "g"}}), first);
  EXPECT_NE(group_of({{"throttle-group", "h"}}), first);
  EXPECT_NE(group_of({{"iops-total", "9"}}), first);
  EXPECT_TRUE(absl::StrContains(
      open_throttle({{"throttle-group", "g"}, {"iops-total", "8"}})
          .status()
          .message(),
      "throttle-group 'g' is in use with other limits"));
}

}  // namespace
}  // namespace spindle

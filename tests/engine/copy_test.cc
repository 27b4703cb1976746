#include "engine/jobs/copy.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

constexpr uint64_t kMib = uint64_t{1} << 20;

struct Side {
  explicit Side(uint64_t length_bytes, Executor* executor) {
    MemoryDriver::Options options;
    options.length_bytes = length_bytes;
    memory = std::make_shared<MemoryDriver>(options);
    auto made = BlockDevice::create(memory, executor);
    EXPECT_TRUE(made.ok()) << made.status();
    device = *std::move(made);
  }
  std::shared_ptr<MemoryDriver> memory;
  std::unique_ptr<BlockDevice> device;
};

class CopyImages : public ::testing::TestWithParam<bool> {
 protected:
  const std::unique_ptr<Executor> executor_ = make_executor({});
};
INSTANTIATE_TEST_SUITE_P(InOrder, CopyImages, ::testing::Bool());

TEST_P(CopyImages, CopiesDataAndLeavesZeroesOut) {
  Side source(20 * kMib + 700, executor_.get());
  Side target(20 * kMib + 1024, executor_.get());
  source.memory->set_content(3 * kMib + 5000, std::string(100000, 'a'));
  source.memory->set_content(9 * kMib, std::string(5 * kMib, 'b'));
  source.memory->set_content(20 * kMib + 600, std::string(100, 'c'));
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  uint64_t last = 0;
  options.job.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    EXPECT_LT(total, 6 * kMib);
    last = done;
  };
  ASSERT_EQ(copy_image(*source.device, *target.device, options),
            absl::OkStatus());
  EXPECT_GT(last, 5 * kMib);
  const std::string copy = target.memory->content();
  EXPECT_TRUE(copy.substr(0, 20 * kMib + 700) == source.memory->content());
  EXPECT_EQ(copy.substr(20 * kMib + 700), std::string(324, '\0'));
  // What was written of 20 MiB: 100 KB, 5 MiB, the end.
  EXPECT_LT(target.device->counters().of(RequestKind::kWrite).bytes, 6 * kMib);
}

TEST_P(CopyImages, TheFirstErrorEndsIt) {
  Side source(20 * kMib, executor_.get());
  source.memory->set_content(0, std::string(20 * kMib, 'x'));
  MemoryDriver::Options small;
  small.length_bytes = 20 * kMib;
  small.read_only = true;
  auto target = BlockDevice::create(std::make_shared<MemoryDriver>(small),
                                    executor_.get());
  ASSERT_TRUE(target.ok());
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  const absl::Status status = copy_image(*source.device, **target, options);
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_LT((*target)->counters().of(RequestKind::kWrite).requests, 10u);
}

TEST_P(CopyImages, NothingToCopy) {
  Side source(0, executor_.get());
  Side target(0, executor_.get());
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  EXPECT_EQ(copy_image(*source.device, *target.device, options),
            absl::OkStatus());
}

}  // namespace
}  // namespace spindle

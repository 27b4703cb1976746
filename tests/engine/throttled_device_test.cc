// A BlockDevice that takes over its driver's limits.
#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "engine/block_device.h"
#include "engine/filter_driver.h"
#include "engine/throttle_group.h"
#include "gtest/gtest.h"
#include "tests/engine/device_fixture.h"
#include "tests/support/memory_driver.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::Buffers;
using testing::make_test_executor;
using testing::MemoryDriver;

class LimitedDriver : public FilterDriver, public ThrottleSource {
 public:
  LimitedDriver(std::shared_ptr<BlockDriver> child,
                std::shared_ptr<ThrottleGroup> group)
      : FilterDriver(std::move(child)), group_(std::move(group)) {}
  std::shared_ptr<ThrottleGroup> take_over_throttle() override {
    return group_;
  }

 private:
  const std::shared_ptr<ThrottleGroup> group_;
};

// Two requests at once, then one each 100 ms, by a clock that stands still.
struct Limited {
  explicit Limited(size_t width = 2, BlockDeviceOptions options = {})
      : executor(make_test_executor(width)),
        group(make_group(this)),
        memory(std::make_shared<MemoryDriver>(
            MemoryDriver::Options{.length_bytes = 1 << 20})),
        device(
            *BlockDevice::create(std::make_shared<LimitedDriver>(memory, group),
                                 executor.get(), std::move(options))) {}

  static std::shared_ptr<ThrottleGroup> make_group(Limited* self) {
    ThrottleLimits limits;
    limits.iops_total.average = 10;
    return std::make_shared<ThrottleGroup>(
        limits, ThrottleGroup::Clock{[self] {
          return absl::FromUnixMillis(self->milliseconds.load());
        }});
  }
  void advance(int passed) {
    milliseconds += passed;
    group->run_due();
  }
  std::vector<Completion> wait(size_t count) {
    std::vector<Completion> out(count);
    EXPECT_EQ(device->completion_queue().wait(count, absl::InfiniteDuration(),
                                              absl::MakeSpan(out)),
              count);
    return out;
  }

  std::atomic<int64_t> milliseconds{0};
  const std::unique_ptr<Executor> executor;
  const std::shared_ptr<ThrottleGroup> group;
  const std::shared_ptr<MemoryDriver> memory;
  std::unique_ptr<BlockDevice> device;
};

TEST(ThrottledDevice, RequestsWaitForTheirLimitsInOrder) {
  for (const bool in_place : {false, true}) {
    BlockDeviceOptions options;
    options.run_in_place = in_place;
    Buffers buffers(5);
    Limited limited(2, std::move(options));
    for (uint64_t i = 0; i < 5; ++i)
      limited.device->aio_readv(Sector(8 * i), buffers[i], i);
    limited.wait(2);
    EXPECT_EQ(limited.group->waiting_count(), 3u);
    for (uint64_t i = 2; i < 5; ++i) {
      limited.advance(100);
      const std::vector<Completion> done = limited.wait(1);
      EXPECT_EQ(done[0].user_data, i);
      EXPECT_TRUE(done[0].status.ok());
    }
  }
}

TEST(ThrottledDevice, AWaitingRequestCanBeWithdrawn) {
  Buffers buffers(4);
  Limited limited;
  limited.device->aio_writev(Sector(0), buffers[0], 0);
  limited.device->aio_writev(Sector(8), buffers[1], 1);
  limited.wait(2);
  AioHandle third = limited.device->aio_writev(Sector(16), buffers[2], 2);
  AioHandle fourth = limited.device->aio_writev(Sector(24), buffers[3], 3);
  EXPECT_EQ(third.cancel(), AioHandle::CancelResult::kWithdrawn);
  const std::vector<Completion> withdrawn = limited.wait(1);
  EXPECT_EQ(withdrawn[0].user_data, 2u);
  EXPECT_EQ(withdrawn[0].status.code(), absl::StatusCode::kCancelled);
  limited.advance(100);
  EXPECT_EQ(limited.wait(1)[0].user_data, 3u);
  EXPECT_EQ(fourth.cancel(), AioHandle::CancelResult::kDone);
  EXPECT_EQ(limited.memory->content({16 * 512, 4096}), std::string(4096, '\0'));
}

// All of one pool's single worker is free while requests wait.
TEST(ThrottledDevice, WaitingRequestsHoldNoWorker) {
  Limited limited(1);
  auto other_memory = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 1 << 20});
  auto other = *BlockDevice::create(other_memory, limited.executor.get());
  Buffers buffers(20);
  for (uint64_t i = 0; i < 10; ++i)
    limited.device->aio_readv(Sector(0), buffers[i], i);
  std::vector<Completion> out(10);
  for (uint64_t i = 0; i < 10; ++i)
    other->aio_readv(Sector(0), buffers[10 + i], i);
  EXPECT_EQ(other->completion_queue().wait(10, absl::InfiniteDuration(),
                                           absl::MakeSpan(out)),
            10u);
  EXPECT_EQ(limited.group->waiting_count(), 8u);
  EXPECT_TRUE(limited.device->drain().ok());
  limited.wait(10);
}

TEST(ThrottledDevice, FlushesAndStatusAreNotLimited) {
  Buffers buffers(3);
  Limited limited;
  for (uint64_t i = 0; i < 3; ++i)
    limited.device->aio_readv(Sector(0), buffers[i], i);
  limited.wait(2);
  limited.device->aio_flush(7);
  EXPECT_EQ(limited.wait(1)[0].user_data, 7u);
  EXPECT_TRUE(limited.device->block_status({0, 512}).ok());
}

TEST(ThrottledDevice, DrainCloseAndChangesDoNotWaitForTheClock) {
  Buffers buffers(12);
  Limited limited;
  for (uint64_t i = 0; i < 6; ++i)
    limited.device->aio_writev(Sector(8 * i), buffers[i], i);
  EXPECT_TRUE(limited.device->drain().ok());
  EXPECT_EQ(limited.group->waiting_count(), 0u);
  for (uint64_t i = 6; i < 9; ++i)
    limited.device->aio_writev(Sector(8 * i), buffers[i], i);
  EXPECT_TRUE(limited.device->set_length(2 << 20).ok());
  for (uint64_t i = 9; i < 12; ++i)
    limited.device->aio_writev(Sector(8 * i), buffers[i], i);
  EXPECT_TRUE(limited.device->close().ok());
  for (const Completion& done : limited.wait(12))
    EXPECT_TRUE(done.status.ok()) << done.status;
}

TEST(ThrottledDevice, ARequestIsCheckedAgainWhenItStarts) {
  Buffers buffers(3);
  Limited limited;
  limited.device->aio_writev(Sector(0), buffers[0], 0);
  limited.device->aio_writev(Sector(0), buffers[1], 1);
  limited.wait(2);
  limited.device->set_max_in_flight(1);
  limited.device->aio_writev(Sector(0), buffers[2], 2);
  limited.advance(100);
  EXPECT_TRUE(limited.wait(1)[0].status.ok());
}

// ---- The real clock ---------------------------------------------------------

TEST(ThrottledDevice, SynchronousCallersWaitThemselves) {
  ThrottleLimits limits;
  limits.iops_total.average = 100;  // 11 at once, then one each 10 ms
  const auto group = std::make_shared<ThrottleGroup>(limits);
  const auto executor = make_test_executor(2);
  const auto memory = std::make_shared<MemoryDriver>(
      MemoryDriver::Options{.length_bytes = 1 << 20});
  const auto device = *BlockDevice::create(
      std::make_shared<LimitedDriver>(memory, group), executor.get());
  Buffer buffer;
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 21; ++i)
    EXPECT_TRUE(device->read(buffer.vector(), Sector(0)).ok());
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(95));
}

// Two devices share a group; threads submit, cancel, drain and go.
TEST(ThrottledDevice, ManyThreadsSubmitAndCancel) {
  constexpr uint64_t kRequests = 150;
  ThrottleLimits limits;
  limits.iops_total.average = 3000;
  const auto executor = make_test_executor(4);
  for (int round = 0; round < 3; ++round) {
    const auto group = std::make_shared<ThrottleGroup>(limits);
    std::vector<std::unique_ptr<BlockDevice>> devices;
    for (int i = 0; i < 2; ++i) {
      const auto memory = std::make_shared<MemoryDriver>(
          MemoryDriver::Options{.length_bytes = 1 << 20});
      devices.push_back(*BlockDevice::create(
          std::make_shared<LimitedDriver>(memory, group), executor.get()));
    }
    std::atomic<uint64_t> completed{0};
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        BlockDevice& device = *devices[t % 2];
        std::mt19937 random(t);
        Buffers buffers(kRequests, 512);
        std::vector<AioHandle> handles;
        for (uint64_t i = 0; i < kRequests; ++i) {
          const auto count = [&completed](const absl::Status& status) {
            EXPECT_TRUE(status.ok() || absl::IsCancelled(status)) << status;
            ++completed;
          };
          handles.push_back(
              i % 2 == 0 ? device.aio_readv(Sector(i), buffers[i], count)
                         : device.aio_writev(Sector(i), buffers[i], count));
          if (random() % 4 == 0) handles[random() % handles.size()].cancel();
        }
        // Memory must outlive the requests.
        EXPECT_TRUE(device.drain().ok());
        while (device.completion_queue().reap({}) > 0) {
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    devices.clear();
    EXPECT_EQ(completed.load(), 4 * kRequests);
  }
}

}  // namespace
}  // namespace spindle

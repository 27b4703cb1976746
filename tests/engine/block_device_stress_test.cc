// Threads that submit, cancel, plug and drain, and one that closes: every
// request completes exactly once.
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "tests/engine/device_fixture.h"
#include "tests/support/seed.h"
#include "threadpool/inline_executor.h"

namespace spindle {
namespace {

using testing::GatedDriver;

constexpr size_t kThreads = 4;
constexpr size_t kPerThread = 1500;

struct Outcome {
  std::atomic<int> completions{0};
  std::atomic<bool> cancelled{false};
  std::atomic<bool> withdrawn{false};

  void complete(const absl::Status& status) {
    completions.fetch_add(1);
    if (absl::IsCancelled(status)) cancelled = true;
  }
};

// Everything that one run shares.
struct Run {
  Run(Executor* executor, uint64_t seed, bool run_in_place,
      size_t max_in_flight)
      : seed(seed), outcomes(kThreads * kPerThread) {
    GatedDriver::Options driver_options;
    driver_options.length_bytes = 1 << 20;
    driver = std::make_shared<GatedDriver>(driver_options);
    driver->try_limit_bytes = 2048;
    device = *BlockDevice::create(
        driver, executor,
        {.max_in_flight = max_in_flight, .run_in_place = run_in_place});
  }

  const uint64_t seed;
  std::shared_ptr<GatedDriver> driver;
  std::unique_ptr<BlockDevice> device;
  std::vector<Outcome> outcomes;
  std::vector<std::atomic<int>> kinds = std::vector<std::atomic<int>>(8);
  std::atomic<bool> stop{false};
};

AioHandle submit_one(Run* run, size_t index, std::minstd_rand* random,
                     const IoVector& memory) {
  BlockDevice& device = *run->device;
  Outcome* const outcome = &run->outcomes[index];
  const auto callback = [outcome](const absl::Status& status) {
    outcome->complete(status);
  };
  const uint64_t sector = (*random)() % 1024;
  const uint64_t length = (*random)() % 4096;
  const int kind = static_cast<int>((*random)() % 8);
  run->kinds[kind].fetch_add(1);
  switch (kind) {
    case 0:
      return device.aio_readv(Sector(sector), memory, uint64_t{index});
    case 1:
      return device.aio_readv(Sector(sector), memory, callback);
    case 2:
      return device.aio_writev(Sector(sector % 8), memory, uint64_t{index});
    case 3:
      return device.aio_pwritev(sector % 8 * 512 + length,
                                memory.slice(0, length), callback);
    case 4:
      return device.aio_flush(callback);
    case 5:
      return device.aio_discard({sector * 512, length}, uint64_t{index});
    case 6:
      return device.aio_readv(Sector(1 << 20), memory,
                              callback);  // out of range
    default:
      return device.aio_block_status(
          {sector * 512, length + 1}, BlockStatusScope::kWholeChain,
          [outcome](const absl::StatusOr<BlockStatus>& got) {
            outcome->complete(got.status());
          });
  }
}

void reap(Run* run) {
  std::array<Completion, 16> out;
  const size_t count =
      run->device->completion_queue().reap(absl::MakeSpan(out));
  for (size_t i = 0; i < count; ++i)
    run->outcomes[out[i].user_data].complete(out[i].status);
}

void submit_many(Run* run, size_t thread) {
  std::minstd_rand random(static_cast<uint32_t>(run->seed + thread * 7919));
  testing::Buffers memory(kPerThread);
  std::vector<std::pair<size_t, AioHandle>> recent;
  for (size_t i = 0; i < kPerThread; ++i) {
    const size_t index = thread * kPerThread + i;
    const bool plugged = random() % 16 == 0;
    if (plugged) run->device->plug();
    recent.emplace_back(index, submit_one(run, index, &random, memory[i]));
    if (random() % 4 == 0) {
      auto& [chosen, handle] = recent[random() % recent.size()];
      if (handle.cancel() == AioHandle::CancelResult::kWithdrawn) {
        run->outcomes[chosen].withdrawn = true;
      }
    }
    if (plugged) run->device->unplug();
    if (random() % 8 == 0) reap(run);
    if (random() % 256 == 0) {
      EXPECT_TRUE(run->device->drain().ok());
    }
    if (recent.size() > 32) recent.erase(recent.begin(), recent.begin() + 16);
  }
  // What names this thread's memory must be over before it goes.
  EXPECT_TRUE(run->device->drain().ok());
}

void resize_now_and_then(Run* run) {
  for (uint64_t i = 0; !run->stop; ++i) {
    EXPECT_TRUE(run->device->set_length((1 << 20) + 512 * (i % 2)).ok());
    run->device->set_max_in_flight(i % 3);
    std::this_thread::yield();
  }
}

void stress(Executor* executor, uint64_t seed, bool run_in_place,
            size_t max_in_flight) {
  Run run(executor, seed, run_in_place, max_in_flight);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i)
    threads.emplace_back(submit_many, &run, i);
  std::thread resizer(resize_now_and_then, &run);
  for (std::thread& thread : threads) thread.join();
  run.stop = true;
  resizer.join();
  EXPECT_TRUE(run.device->close().ok());
  while (run.device->completion_queue().sink() != nullptr) {
    bool missing = false;
    for (const Outcome& each : run.outcomes) missing |= each.completions == 0;
    if (!missing) break;
    reap(&run);
  }
  uint64_t cancelled = 0;
  for (const Outcome& each : run.outcomes) {
    ASSERT_EQ(each.completions, 1);
    // A second cancel() may report what the first withdrew, never the reverse.
    ASSERT_EQ(each.withdrawn, each.cancelled);
    cancelled += each.cancelled ? 1 : 0;
  }
  uint64_t requests = 0;
  uint64_t counted_cancelled = 0;
  for (const RequestCounters& each : run.device->counters().by_kind) {
    requests += each.requests;
    counted_cancelled += each.cancelled;
  }
  EXPECT_EQ(requests, kThreads * kPerThread);
  EXPECT_EQ(counted_cancelled, cancelled);
  run.device.reset();
  for (const Outcome& each : run.outcomes) ASSERT_EQ(each.completions, 1);
}

TEST(Stress, EachRequestCompletesOnceOverAPool) {
  const uint64_t seed = testing::test_seed();
  for (bool run_in_place : {false, true}) {
    for (size_t max_in_flight : {0, 3}) {
      auto executor = make_executor(
          {.width = 4, .name = "stress", .interleaving_seed = seed});
      stress(executor.get(), seed, run_in_place, max_in_flight);
    }
  }
}

TEST(Stress, EachRequestCompletesOnceWithoutThreads) {
  const uint64_t seed = testing::test_seed();
  for (bool run_in_place : {false, true}) {
    for (size_t max_in_flight : {0, 3}) {
      InlineExecutor executor({.seed = seed});
      stress(&executor, seed, run_in_place, max_in_flight);
    }
  }
}

}  // namespace
}  // namespace spindle

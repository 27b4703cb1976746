#include "threadpool/thread_pool.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/barrier.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"
#include "threadpool/parallelism_cap.h"

namespace spindle {
namespace {

std::unique_ptr<ThreadPool> make_pool(size_t width,
                                      const std::string& name = "test") {
  auto pool = ThreadPool::create({.width = width, .name = name});
  EXPECT_TRUE(pool.ok()) << pool.status();
  return *std::move(pool);
}

void run_and_wait(WorkQueue& queue, const std::function<void()>& body) {
  absl::Notification done;
  FunctionItem item([&] {
    body();
    done.Notify();
  });
  ASSERT_TRUE(queue.submit(&item));
  done.WaitForNotification();
}

// Returns once as many items as `count` are inside run() at the same time.
void block_at_once(WorkQueue& queue, int count) {
  absl::Barrier* const barrier = new absl::Barrier(count);
  absl::BlockingCounter left(count);
  std::vector<std::unique_ptr<FunctionItem>> items;
  for (int i = 0; i < count; ++i) {
    items.push_back(std::make_unique<FunctionItem>([&] {
      if (barrier->Block()) delete barrier;
      left.DecrementCount();
    }));
    ASSERT_TRUE(queue.submit(items.back().get()));
  }
  left.Wait();
}

TEST(ThreadPool, RunsEachItemOnceInOrder) {
  constexpr int kItems = 1000;
  const auto pool = make_pool(4);
  const auto queue = pool->make_queue({.name = "serial", .max_workers = 1});
  std::vector<int> order;
  std::vector<std::unique_ptr<FunctionItem>> items;
  absl::BlockingCounter left(kItems);
  for (int i = 0; i < kItems; ++i) {
    items.push_back(std::make_unique<FunctionItem>([&order, &left, i] {
      order.push_back(i);
      left.DecrementCount();
    }));
    ASSERT_TRUE(queue->submit(items.back().get()));
  }
  left.Wait();
  ASSERT_EQ(order.size(), static_cast<size_t>(kItems));
  for (int i = 0; i < kItems; ++i) EXPECT_EQ(order[i], i);
  EXPECT_EQ(queue->counters().submitted, static_cast<uint64_t>(kItems));
  EXPECT_EQ(queue->counters().ran, static_cast<uint64_t>(kItems));
}

TEST(ThreadPool, AsManyItemsBlockAtOnceAsThePoolIsWide) {
  constexpr int kWidth = 48;
  const auto pool = make_pool(kWidth);
  EXPECT_EQ(pool->width(), static_cast<size_t>(kWidth));
  const auto queue = pool->make_queue({.name = "wide", .max_workers = kWidth});
  for (int round = 0; round < 3; ++round) block_at_once(*queue, kWidth);
}

TEST(ThreadPool, SeveralPoolsBlockAtOnce) {
  auto first = make_pool(8, "first");
  const auto second = make_pool(24, "second");
  auto third = make_pool(3, "third");
  const auto queue = second->make_queue({.name = "q", .max_workers = 24});
  block_at_once(*queue, 24);
  first.reset();
  block_at_once(*queue, 24);
  third = make_pool(17, "fourth");
  block_at_once(*third->make_queue({.name = "q", .max_workers = 17}), 17);
  block_at_once(*queue, 24);
}

TEST(ThreadPool, AQueueOfHungItemsDoesNotStopAnotherQueue) {
  constexpr size_t kWidth = 8;
  // The default cap: a quarter of the workers stays free.
  constexpr size_t kCap = kWidth - kWidth / 4;
  const auto pool = make_pool(kWidth);
  const auto hung_queue = pool->make_queue({.name = "hung"});
  const auto other_queue = pool->make_queue({.name = "other"});
  absl::Notification release;
  absl::Notification cap_reached;
  std::atomic<size_t> entered = 0;
  std::vector<std::unique_ptr<FunctionItem>> hung;
  for (size_t i = 0; i < 2 * kWidth; ++i) {
    hung.push_back(std::make_unique<FunctionItem>([&] {
      if (entered.fetch_add(1) + 1 == kCap) cap_reached.Notify();
      release.WaitForNotification();
    }));
    ASSERT_TRUE(hung_queue->submit(hung.back().get()));
  }
  cap_reached.WaitForNotification();
  for (int i = 0; i < 100; ++i) run_and_wait(*other_queue, [] {});
  EXPECT_EQ(entered.load(), kCap);
  release.Notify();
  pool->stop(Executor::StopMode::kRunQueued);
}

TEST(ThreadPool, AHungItemDoesNotDelayTheRestOfItsBatch) {
  const auto pool = make_pool(4);
  const auto queue = pool->make_queue({.name = "q"});
  for (int round = 0; round < 20; ++round) {
    absl::Notification unblocked;
    absl::BlockingCounter left(2);
    FunctionItem blocked([&] {
      unblocked.WaitForNotification();
      left.DecrementCount();
    });
    FunctionItem unblocker([&] {
      unblocked.Notify();
      left.DecrementCount();
    });
    WorkItem* const items[] = {&blocked, &unblocker};
    ASSERT_EQ(queue->submit_batch(items), 2u);
    left.Wait();
  }
}

TEST(ThreadPool, ItemsSubmittedBehindAHungOneRun) {
  const auto pool = make_pool(4);
  const auto queue = pool->make_queue({.name = "q"});
  for (int i = 0; i < 100; ++i) run_and_wait(*queue, [] {});
  HungItem hung;
  ASSERT_TRUE(queue->submit(&hung));
  for (int i = 0; i < 100; ++i) run_and_wait(*queue, [] {});
  hung.release.Notify();
  pool->stop(Executor::StopMode::kRunQueued);
}

TEST(ThreadPool, AnItemMaySubmitAndDestroyItself) {
  struct Chain final : WorkItem {
    Chain(WorkQueue& queue, int left, absl::Notification& done)
        : queue(queue), left(left), done(done) {}
    void run() override {
      if (left == 0) {
        done.Notify();
      } else if (auto* next = new Chain(queue, left - 1, done);
                 !queue.submit(next)) {
        delete next;
      }
      delete this;
    }
    void abandon() override { delete this; }
    WorkQueue& queue;
    const int left;
    absl::Notification& done;
  };
  const auto pool = make_pool(2);
  const auto queue = pool->make_queue({.name = "q"});
  absl::Notification done;
  ASSERT_TRUE(queue->submit(new Chain(*queue, 200, done)));
  done.WaitForNotification();
}

TEST(ThreadPool, StopRunsWhatIsQueued) {
  const auto pool = make_pool(2);
  const auto queue = pool->make_queue({.name = "q", .max_workers = 1});
  CountingItem items[50];
  for (CountingItem& item : items) ASSERT_TRUE(queue->submit(&item));
  pool->stop(Executor::StopMode::kRunQueued);
  for (CountingItem& item : items) EXPECT_EQ(item.ran.load(), 1);
  CountingItem late;
  EXPECT_FALSE(queue->submit(&late));
  pool->stop(Executor::StopMode::kCancelQueued);
}

TEST(ThreadPool, StopFromSeveralThreadsWaitsInEach) {
  const auto pool = make_pool(3);
  const auto queue = pool->make_queue({.name = "q"});
  CountingItem items[50];
  for (CountingItem& item : items) ASSERT_TRUE(queue->submit(&item));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      pool->stop(Executor::StopMode::kRunQueued);
      for (CountingItem& item : items) EXPECT_EQ(item.ran.load(), 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ThreadPool, AQueueOutlivesItsPool) {
  auto pool = make_pool(2);
  const auto queue = pool->make_queue({.name = "q"});
  run_and_wait(*queue, [] {});
  pool.reset();
  CountingItem item;
  EXPECT_FALSE(queue->submit(&item));
  EXPECT_FALSE(queue->withdraw(&item));
  EXPECT_EQ(queue->counters().ran, 1u);
}

TEST(ThreadPool, ItemsOfADroppedQueueRun) {
  const auto pool = make_pool(2);
  CountingItem items[20];
  for (CountingItem& item : items) {
    ASSERT_TRUE(pool->make_queue({.name = "dropped"})->submit(&item));
  }
  pool->stop(Executor::StopMode::kRunQueued);
  for (CountingItem& item : items) EXPECT_EQ(item.ran.load(), 1);
}

TEST(ThreadPool, KnowsItsOwnThreads) {
  const auto pool = make_pool(2);
  const auto other = make_pool(2);
  const auto queue = pool->make_queue({.name = "q"});
  const auto other_queue = other->make_queue({.name = "q"});
  EXPECT_FALSE(pool->on_worker_thread());
  EXPECT_FALSE(pool->run_one());
  run_and_wait(*queue, [&] {
    EXPECT_TRUE(pool->on_worker_thread());
    EXPECT_FALSE(other->on_worker_thread());
    EXPECT_FALSE(other_queue->notify_after_batch(
        std::make_shared<CountingNotification>()));
  });
}

TEST(ThreadPool, ThreadsAreNamedAndBlockSignals) {
  const auto pool = make_pool(2, "a-long-pool-name");
  run_and_wait(*pool->make_queue({.name = "q"}), [] {
    char name[16];
    ASSERT_EQ(pthread_getname_np(pthread_self(), name, sizeof(name)), 0);
    EXPECT_EQ(std::string(name).substr(0, 14), "a-long-pool-n-") << name;
    sigset_t mask;
    ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &mask), 0);
    for (const int signal : {SIGINT, SIGTERM, SIGUSR1, SIGCHLD, SIGPIPE}) {
      EXPECT_EQ(sigismember(&mask, signal), 1) << signal;
    }
  });
  sigset_t mask;
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, nullptr, &mask), 0);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0)
      << "creating a pool changed the caller's signals";
}

absl::Duration process_time() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

// Whatever the machine does meanwhile, a process whose threads all sleep uses
// none of its processors.
TEST(ThreadPool, IdleUsesNoProcessorTime) {
  const auto pool = make_pool(64);
  const auto queue = pool->make_queue({.name = "q", .max_workers = 64});
  block_at_once(*queue, 64);
  for (int i = 0; i < 1000; ++i) run_and_wait(*queue, [] {});
  absl::Duration used;
  for (int window = 0; window < 20; ++window) {
    const absl::Duration before = process_time();
    absl::SleepFor(absl::Milliseconds(200));
    used = process_time() - before;
    if (used < absl::Milliseconds(1)) break;
  }
  EXPECT_LT(used, absl::Milliseconds(1));
}

TEST(ThreadPool, RefusesAnImpossibleWidth) {
  for (const size_t width : {size_t{0}, size_t{1'000'000}}) {
    const auto pool = ThreadPool::create({.width = width});
    EXPECT_EQ(pool.status().code(), absl::StatusCode::kInvalidArgument)
        << width;
  }
}

TEST(ThreadPool, SaysSoWhereTheEmbedderCapsParallelism) {
  {
    const ParallelismCap cap(3);
    const auto pool = ThreadPool::create({.width = 16});
    ASSERT_EQ(pool.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_NE(pool.status().message().find("max_allowed_parallelism 18"),
              std::string::npos)
        << pool.status();
    EXPECT_NE(pool.status().message().find("allows 3"), std::string::npos)
        << pool.status();
  }
  block_at_once(*make_pool(16)->make_queue({.name = "q", .max_workers = 16}),
                16);
}

TEST(ThreadPool, RepeatedCreationAndDestruction) {
  for (int i = 0; i < 20; ++i) {
    const auto pool = make_pool(1 + i % 5);
    run_and_wait(*pool->make_queue({.name = "q"}), [] {});
  }
}

TEST(ThreadPoolDeathTest, AnItemMayNotStopItsOwnPool) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        const auto pool = make_pool(1);
        run_and_wait(*pool->make_queue({.name = "q"}),
                     [&] { pool->stop(Executor::StopMode::kRunQueued); });
      },
      "may not stop");
}

}  // namespace
}  // namespace spindle

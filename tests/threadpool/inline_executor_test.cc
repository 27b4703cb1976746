#include "threadpool/inline_executor.h"

#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"

namespace spindle {
namespace {

void run_all(Executor& executor) {
  while (executor.run_one()) {
  }
}

// The order in which ten items of each of two queues run.
std::string order_with(const InlineExecutorOptions& options) {
  InlineExecutor executor(options);
  const auto upper = executor.make_queue({.name = "upper"});
  const auto lower = executor.make_queue({.name = "lower"});
  std::string order;
  std::vector<std::unique_ptr<FunctionItem>> items;
  for (int i = 0; i < 10; ++i) {
    items.push_back(
        std::make_unique<FunctionItem>([&order, i] { order += 'A' + i; }));
    EXPECT_TRUE(upper->submit(items.back().get()));
    items.push_back(
        std::make_unique<FunctionItem>([&order, i] { order += 'a' + i; }));
    EXPECT_TRUE(lower->submit(items.back().get()));
  }
  run_all(executor);
  return order;
}

TEST(InlineExecutor, ServesQueuesInTurnAndInOrder) {
  EXPECT_EQ(order_with({}), "AaBbCcDdEeFfGgHhIiJj");
}

TEST(InlineExecutor, ASeedDeterminesARandomOrder) {
  const std::string first = order_with({.seed = 1});
  EXPECT_EQ(first, order_with({.seed = 1}));
  EXPECT_NE(first, order_with({.seed = 2}));
  EXPECT_NE(first, order_with({}));
}

TEST(InlineExecutor, AWindowOfOneKeepsTheOrderWithinAQueue) {
  std::string upper, lower;
  for (const char c : order_with({.seed = 3, .reorder_window = 1})) {
    (c < 'a' ? upper : lower) += c;
  }
  EXPECT_EQ(upper, "ABCDEFGHIJ");
  EXPECT_EQ(lower, "abcdefghij");
}

TEST(InlineExecutor, RunsNothingByItself) {
  InlineExecutor executor;
  EXPECT_EQ(executor.width(), 0u);
  const auto queue = executor.make_queue({.name = "q"});
  CountingItem item;
  ASSERT_TRUE(queue->submit(&item));
  EXPECT_EQ(item.ran.load(), 0);
  EXPECT_TRUE(executor.run_one());
  EXPECT_EQ(item.ran.load(), 1);
  EXPECT_FALSE(executor.run_one());
}

TEST(InlineExecutor, AnItemMayRunAnother) {
  InlineExecutor executor;
  const auto queue = executor.make_queue({.name = "q"});
  CountingItem inner;
  FunctionItem outer([&] {
    EXPECT_TRUE(executor.run_one());
    EXPECT_EQ(inner.ran.load(), 1);
    EXPECT_TRUE(executor.on_worker_thread());
  });
  ASSERT_TRUE(queue->submit(&outer));
  ASSERT_TRUE(queue->submit(&inner));
  EXPECT_TRUE(executor.run_one());
  EXPECT_FALSE(executor.on_worker_thread());
}

TEST(InlineExecutor, AQueueRunsNoMoreItemsAtOnceThanItsCap) {
  InlineExecutor executor;
  const auto queue = executor.make_queue({.name = "q", .max_workers = 1});
  CountingItem inner;
  FunctionItem outer([&] { EXPECT_FALSE(executor.run_one()); });
  ASSERT_TRUE(queue->submit(&outer));
  ASSERT_TRUE(queue->submit(&inner));
  run_all(executor);
  EXPECT_EQ(inner.ran.load(), 1);
}

TEST(InlineExecutor, NotifiesAfterTheItemAndOnce) {
  InlineExecutor executor;
  const auto queue = executor.make_queue({.name = "q"});
  const auto notification = std::make_shared<CountingNotification>();
  EXPECT_FALSE(queue->notify_after_batch(notification));
  FunctionItem item([&] {
    EXPECT_TRUE(queue->notify_after_batch(notification));
    EXPECT_TRUE(queue->notify_after_batch(notification));
    EXPECT_EQ(notification->calls.load(), 0);
  });
  ASSERT_TRUE(queue->submit(&item));
  EXPECT_TRUE(executor.run_one());
  EXPECT_EQ(notification->calls.load(), 1);
}

TEST(InlineExecutor, WithdrawsWhatIsQueued) {
  InlineExecutor executor;
  const auto queue = executor.make_queue({.name = "q"});
  const auto other = executor.make_queue({.name = "other"});
  CountingItem item;
  ASSERT_TRUE(queue->submit(&item));
  EXPECT_FALSE(other->withdraw(&item));
  EXPECT_TRUE(queue->withdraw(&item));
  EXPECT_FALSE(queue->withdraw(&item));
  EXPECT_FALSE(executor.run_one());
  EXPECT_EQ(queue->counters().withdrawn, 1u);
}

TEST(InlineExecutor, StopRunsOrAbandonsWhatIsQueued) {
  for (const auto mode :
       {Executor::StopMode::kRunQueued, Executor::StopMode::kCancelQueued}) {
    InlineExecutor executor;
    const auto queue = executor.make_queue({.name = "q"});
    CountingItem items[3];
    for (CountingItem& item : items) ASSERT_TRUE(queue->submit(&item));
    executor.stop(mode);
    const bool ran = mode == Executor::StopMode::kRunQueued;
    for (CountingItem& item : items) {
      EXPECT_EQ(item.ran.load(), ran ? 1 : 0);
      EXPECT_EQ(item.abandoned.load(), ran ? 0 : 1);
    }
    EXPECT_EQ(queue->counters().ran, ran ? 3u : 0u);
    EXPECT_EQ(queue->counters().abandoned, ran ? 0u : 3u);
    CountingItem late;
    EXPECT_FALSE(queue->submit(&late));
  }
}

TEST(InlineExecutor, ItemsOfADroppedQueueRunAndItsPlaceIsReused) {
  InlineExecutor executor;
  CountingItem item;
  ASSERT_TRUE(executor.make_queue({.name = "dropped"})->submit(&item));
  run_all(executor);
  EXPECT_EQ(item.ran.load(), 1);
  const auto reused = executor.make_queue({.name = "reused"});
  EXPECT_EQ(reused->counters().ran, 0u);
}

// Each builds its executor in the process that dies: a forked one is refused.
TEST(InlineExecutorDeathTest, RefusesAnItemThatIsQueuedAlready) {
  EXPECT_DEATH(
      {
        InlineExecutor executor;
        const auto queue = executor.make_queue({.name = "q"});
        CountingItem item;
        static_cast<void>(queue->submit(&item));
        static_cast<void>(queue->submit(&item));
      },
      "queued already");
}

TEST(InlineExecutorDeathTest, RefusesToStopFromInsideAnItem) {
  EXPECT_DEATH(
      {
        InlineExecutor executor;
        const auto queue = executor.make_queue({.name = "q"});
        FunctionItem item(
            [&executor] { executor.stop(Executor::StopMode::kRunQueued); });
        static_cast<void>(queue->submit(&item));
        run_all(executor);
      },
      "may not stop");
}

}  // namespace
}  // namespace spindle

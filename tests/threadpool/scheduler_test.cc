// The scheduler on threads of the test's own, so that the test decides which
// workers exist.
#include "threadpool/scheduler.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"

namespace spindle {
namespace {

class SchedulerTest : public testing::Test {
 protected:
  static constexpr size_t kWidth = 2;

  ~SchedulerTest() override {
    EXPECT_TRUE(threads_.empty()) << "call finish()";
  }

  // To be called while the items are alive.
  void finish() {
    scheduler_.stop(Executor::StopMode::kRunQueued);
    // A stop waits for all, so those that the test did not need begin now.
    while (workers_ < kWidth) start_worker();
    if (!watched_) start_watcher();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void start_worker() {
    const size_t index = workers_++;
    threads_.emplace_back([this, index] { scheduler_.work(index); });
  }

  void start_watcher() {
    watched_ = true;
    threads_.emplace_back([this] { scheduler_.watch(); });
  }

  void submit(std::vector<WorkItem*> items) {
    EXPECT_EQ(scheduler_.submit(queue_, items), items.size());
  }

  Scheduler scheduler_{kWidth, 2};
  const Scheduler::QueueId queue_ = scheduler_.add_queue(kWidth);

 private:
  size_t workers_ = 0;
  bool watched_ = false;
  std::vector<std::thread> threads_;
};

// The only worker claims more than it starts; the item that could free it is
// behind it in the same batch.
TEST_F(SchedulerTest, AnotherWorkerTakesOverWhatAStuckOneHasClaimed) {
  absl::Notification unblocked;
  absl::Notification entered;
  FunctionItem blocked([&] {
    entered.Notify();
    unblocked.WaitForNotification();
  });
  FunctionItem unblocker([&] { unblocked.Notify(); });
  CountingItem rest[6];
  submit({&blocked, &unblocker, &rest[0], &rest[1], &rest[2], &rest[3],
          &rest[4], &rest[5]});
  start_worker();
  entered.WaitForNotification();
  start_watcher();
  start_worker();
  unblocked.WaitForNotification();
  EXPECT_GE(scheduler_.counters(queue_).taken_over, 1u);
  finish();
}

TEST_F(SchedulerTest, NotifiesAtOnceIfTheWorkerIsStuckInALaterItem) {
  const auto notification = std::make_shared<CountingNotification>();
  FunctionItem asking(
      [&] { EXPECT_TRUE(scheduler_.notify_after_batch(notification)); });
  FunctionItem waiting([&] { notification->first.WaitForNotification(); });
  CountingItem rest[4];
  submit({&asking, &waiting, &rest[0], &rest[1], &rest[2], &rest[3]});
  start_watcher();
  start_worker();
  notification->first.WaitForNotification();
  finish();
}

TEST_F(SchedulerTest, NotifiesOncePerBatchAndOutsideItems) {
  const auto notification = std::make_shared<CountingNotification>();
  std::vector<std::unique_ptr<FunctionItem>> items;
  std::vector<WorkItem*> pointers;
  absl::Notification all_ran;
  // One worker of two claims half of the items at the most.
  for (int i = 0; i < 8; ++i) {
    items.push_back(std::make_unique<FunctionItem>([&, i] {
      EXPECT_TRUE(scheduler_.notify_after_batch(notification));
      EXPECT_TRUE(scheduler_.on_worker_thread());
      if (i == 7) all_ran.Notify();
    }));
    pointers.push_back(items.back().get());
  }
  submit(pointers);
  start_worker();
  all_ran.WaitForNotification();
  finish();
  EXPECT_LT(notification->calls.load(), 8);
  EXPECT_FALSE(scheduler_.on_worker_thread());
  EXPECT_FALSE(scheduler_.notify_after_batch(notification));
}

TEST_F(SchedulerTest, WithdrawsQueuedAndClaimedItems) {
  HungItem hung;
  CountingItem rest[5];
  submit({&hung, &rest[0], &rest[1], &rest[2], &rest[3], &rest[4]});
  start_worker();
  hung.entered.WaitForNotification();
  EXPECT_FALSE(scheduler_.withdraw(queue_, &hung));
  // The worker has claimed three of six; the others are in the queue.
  EXPECT_NE(WorkList::holder(&rest[0]), WorkList::holder(&rest[4]));
  for (CountingItem& item : rest) {
    EXPECT_TRUE(scheduler_.withdraw(queue_, &item));
    EXPECT_FALSE(scheduler_.withdraw(queue_, &item));
  }
  EXPECT_EQ(scheduler_.counters(queue_).withdrawn, 5u);
  hung.release.Notify();
  finish();
  for (CountingItem& item : rest) EXPECT_EQ(item.ran.load(), 0);
}

TEST_F(SchedulerTest, DoesNotWithdrawFromAnotherQueue) {
  const Scheduler::QueueId other = scheduler_.add_queue(0);
  HungItem hung;
  CountingItem claimed, queued;
  submit({&hung, &claimed, &queued});
  EXPECT_FALSE(scheduler_.withdraw(other, &queued));
  start_worker();
  hung.entered.WaitForNotification();
  EXPECT_FALSE(scheduler_.withdraw(other, &claimed));
  EXPECT_FALSE(scheduler_.withdraw(other, &queued));
  hung.release.Notify();
  finish();
}

TEST_F(SchedulerTest, CancelAbandonsClaimedItemsToo) {
  HungItem hung;
  CountingItem rest[5];
  submit({&hung, &rest[0], &rest[1], &rest[2], &rest[3], &rest[4]});
  start_worker();
  hung.entered.WaitForNotification();
  scheduler_.stop(Executor::StopMode::kCancelQueued);
  for (CountingItem& item : rest) EXPECT_EQ(item.abandoned.load(), 1);
  hung.release.Notify();
  EXPECT_EQ(scheduler_.counters(queue_).abandoned, 5u);
  CountingItem late;
  WorkItem* const pointer = &late;
  EXPECT_EQ(scheduler_.submit(queue_, {&pointer, 1}), 0u);
  finish();
}

// Two queues, one worker that is inside neither: items alternate.
TEST_F(SchedulerTest, ServesQueuesInTurn) {
  const Scheduler::QueueId other = scheduler_.add_queue(1);
  HungItem gate;
  submit({&gate});
  start_worker();
  gate.entered.WaitForNotification();
  std::vector<int> order;
  std::vector<std::unique_ptr<FunctionItem>> items;
  for (int i = 0; i < 64; ++i) {
    const int name = i % 2;
    items.push_back(std::make_unique<FunctionItem>(
        [&order, name] { order.push_back(name); }));
  }
  for (int i = 0; i < 64; i += 2) submit({items[i].get()});
  for (int i = 1; i < 64; i += 2) {
    WorkItem* const pointer = items[i].get();
    EXPECT_EQ(scheduler_.submit(other, {&pointer, 1}), 1u);
  }
  absl::Notification done;
  FunctionItem last([&] { done.Notify(); });
  submit({&last});
  gate.release.Notify();
  done.WaitForNotification();
  // Neither queue waits for more than a batch or two of the other.
  size_t longest = 0;
  size_t run = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    run = i > 0 && order[i] == order[i - 1] ? run + 1 : 1;
    if (i < order.size() / 2) longest = std::max(longest, run);
  }
  EXPECT_LE(longest, 2 * DurationEstimate::kLargestBatch);
  finish();
}

class TurnQueueTest : public SchedulerTest {
 protected:
  void submit_to(Scheduler::QueueId queue, std::vector<WorkItem*> items) {
    EXPECT_EQ(scheduler_.submit(queue, items), items.size());
  }

  // True if a second worker leaves `second`, which was submitted to `queue`,
  // alone while the first worker is inside `first`.
  bool waits_behind(HungItem* first, Scheduler::QueueId queue,
                    CountingItem* second) {
    start_worker();
    first->entered.WaitForNotification();
    submit_to(queue, {second});
    // It is served after the queues that were there before.
    absl::Notification ran;
    FunctionItem last([&] { ran.Notify(); });
    submit_to(scheduler_.add_queue(kWidth), {&last});
    start_worker();
    ran.WaitForNotification();
    return second->ran.load() == 0;
  }

  const Scheduler::QueueId turns_ = scheduler_.add_turn_queue(queue_);
};

TEST_F(TurnQueueTest, ShortItemsHaveOneWorker) {
  HungItem first;
  CountingItem second;
  submit_to(turns_, {&first});
  EXPECT_TRUE(waits_behind(&first, turns_, &second));
  first.release.Notify();
  finish();
  EXPECT_EQ(second.ran.load(), 1);
}

// Whoever waits for the first half's completions submits more during the other.
TEST_F(TurnQueueTest, AWorkerLeavesItselfHalfOfTheItems) {
  struct BatchSizes final : BatchNotification {
    void batch_ended() override { sizes.push_back(std::exchange(ran, 0)); }
    int ran = 0;
    std::vector<int> sizes;
  };
  const auto batch = std::make_shared<BatchSizes>();
  std::vector<std::unique_ptr<FunctionItem>> items;
  std::vector<WorkItem*> pointers;
  for (int i = 0; i < 8; ++i) {
    items.push_back(std::make_unique<FunctionItem>([&] {
      ++batch->ran;
      EXPECT_TRUE(scheduler_.notify_after_batch(batch));
    }));
    pointers.push_back(items.back().get());
  }
  submit_to(turns_, pointers);
  start_worker();
  finish();
  EXPECT_EQ(batch->sizes, (std::vector<int>{4, 2, 1, 1}));
}

TEST_F(TurnQueueTest, WhatHangsDoesNotKeepTheTurn) {
  start_worker();
  start_worker();
  start_watcher();
  HungItem first;
  submit_to(turns_, {&first});
  first.entered.WaitForNotification();
  absl::Notification ran;
  FunctionItem second([&] { ran.Notify(); });
  submit_to(turns_, {&second});
  ran.WaitForNotification();
  first.release.Notify();
  finish();
}

TEST_F(TurnQueueTest, SlowItemsRunBesideEachOther) {
  start_worker();
  start_worker();
  std::atomic<int> inside = 0, most = 0;
  std::vector<std::unique_ptr<FunctionItem>> items;
  std::vector<WorkItem*> pointers;
  for (int i = 0; i < 64; ++i) {
    items.push_back(std::make_unique<FunctionItem>([&] {
      const int now = ++inside;
      for (int seen = most;
           seen < now && !most.compare_exchange_weak(seen, now);)
        continue;
      absl::SleepFor(absl::Milliseconds(2));
      --inside;
    }));
    pointers.push_back(items.back().get());
  }
  submit_to(turns_, pointers);
  finish();
  EXPECT_EQ(most.load(), 2);
}

TEST_F(TurnQueueTest, SharesTheCapOfItsPartner) {
  const Scheduler::QueueId narrow = scheduler_.add_queue(1);
  const Scheduler::QueueId turns = scheduler_.add_turn_queue(narrow);
  HungItem first;
  CountingItem second;
  submit_to(narrow, {&first});
  EXPECT_TRUE(waits_behind(&first, turns, &second));
  first.release.Notify();
  finish();
  EXPECT_EQ(second.ran.load(), 1);
}

TEST_F(TurnQueueTest, ItsPartnerSharesItsCap) {
  const Scheduler::QueueId narrow = scheduler_.add_queue(1);
  const Scheduler::QueueId turns = scheduler_.add_turn_queue(narrow);
  HungItem first;
  CountingItem second;
  submit_to(turns, {&first});
  EXPECT_TRUE(waits_behind(&first, narrow, &second));
  first.release.Notify();
  finish();
  EXPECT_EQ(second.ran.load(), 1);
}

// A queue that is used again belongs to nobody.
TEST_F(TurnQueueTest, ForgetsItsPartner) {
  const Scheduler::QueueId narrow = scheduler_.add_queue(1);
  const Scheduler::QueueId turns = scheduler_.add_turn_queue(narrow);
  scheduler_.remove_queue(turns);
  ASSERT_EQ(scheduler_.add_queue(1), turns);
  HungItem first;
  CountingItem second;
  submit_to(narrow, {&first});
  EXPECT_FALSE(waits_behind(&first, turns, &second));
  first.release.Notify();
  finish();
}

TEST_F(TurnQueueTest, ItsPartnerForgetsIt) {
  const Scheduler::QueueId narrow = scheduler_.add_queue(1);
  const Scheduler::QueueId turns = scheduler_.add_turn_queue(narrow);
  scheduler_.remove_queue(turns);
  ASSERT_EQ(scheduler_.add_queue(1), turns);
  HungItem first;
  CountingItem second;
  submit_to(turns, {&first});
  EXPECT_FALSE(waits_behind(&first, narrow, &second));
  first.release.Notify();
  finish();
}

}  // namespace
}  // namespace spindle

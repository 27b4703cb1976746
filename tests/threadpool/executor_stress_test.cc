// Many threads submit, withdraw and stop at random; every item that was
// accepted meets exactly one end, and every notification that was promised
// comes.
#include <algorithm>
#include <array>
#include <atomic>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "tests/threadpool/work_items.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

class Doorbell final : public BatchNotification {
 public:
  void batch_ended() override { promised.store(false); }
  std::atomic<bool> promised = false;
};

class StressItem final : public WorkItem {
 public:
  StressItem(WorkQueue& queue, const std::shared_ptr<Doorbell>& doorbell,
             uint32_t random)
      : queue_(queue), doorbell_(doorbell), random_(random) {}

  void run() override {
    // Mostly short, some that block, a few that block for long.
    if (random_ % 256 == 0) {
      absl::SleepFor(absl::Milliseconds(3));
    } else if (random_ % 16 == 0) {
      absl::SleepFor(absl::Microseconds(100));
    }
    if (random_ % 3 == 0) {
      doorbell_->promised.store(true);
      if (!queue_.notify_after_batch(doorbell_)) doorbell_->batch_ended();
    }
    ends.fetch_add(1);
    ran.store(true);
  }

  void abandon() override {
    ends.fetch_add(1);
    abandoned.store(true);
  }

  bool accepted = false;
  bool withdrawn = false;
  std::atomic<bool> ran = false;
  std::atomic<bool> abandoned = false;
  std::atomic<int> ends = 0;

 private:
  WorkQueue& queue_;
  const std::shared_ptr<Doorbell>& doorbell_;
  const uint32_t random_;
};

// One thread's part: its items live until the executor has stopped.
class Submitter {
 public:
  Submitter(WorkQueue& queue, uint64_t seed) : queue_(queue), random_(seed) {}

  void submit_and_withdraw(size_t count) {
    while (items_.size() < count) {
      submit_some();
      if (random_() % 4 == 0) withdraw_one();
      if (random_() % 64 == 0) absl::SleepFor(absl::Microseconds(50));
    }
  }

  void check() const {
    for (const auto& item : items_) {
      const int ends = item->ends.load() + (item->withdrawn ? 1 : 0);
      ASSERT_EQ(ends, item->accepted ? 1 : 0);
    }
    ASSERT_FALSE(doorbell_->promised.load()) << "a notification was lost";
  }

  void add_to(WorkQueueCounters& sum) const {
    for (const auto& item : items_) {
      sum.submitted += item->accepted ? 1 : 0;
      sum.ran += item->ran.load() ? 1 : 0;
      sum.abandoned += item->abandoned.load() ? 1 : 0;
      sum.withdrawn += item->withdrawn ? 1 : 0;
    }
  }

 private:
  void submit_some() {
    std::array<WorkItem*, 9> batch;
    const size_t count = 1 + random_() % batch.size();
    const size_t first = items_.size();
    for (size_t i = 0; i < count; ++i) {
      items_.push_back(std::make_unique<StressItem>(
          queue_, doorbell_, static_cast<uint32_t>(random_())));
      batch[i] = items_.back().get();
    }
    size_t accepted = 0;
    if (count == 1) {
      accepted = queue_.submit(batch[0]) ? 1 : 0;
    } else {
      accepted = queue_.submit_batch(absl::MakeSpan(batch.data(), count));
    }
    for (size_t i = 0; i < accepted; ++i) items_[first + i]->accepted = true;
  }

  void withdraw_one() {
    const size_t age = std::min<size_t>(items_.size(), 1 + random_() % 32);
    StressItem& item = *items_[items_.size() - age];
    if (!item.withdrawn && queue_.withdraw(&item)) item.withdrawn = true;
  }

  WorkQueue& queue_;
  std::mt19937_64 random_;
  const std::shared_ptr<Doorbell> doorbell_ = std::make_shared<Doorbell>();
  std::vector<std::unique_ptr<StressItem>> items_;
};

void add(WorkQueueCounters& sum, const WorkQueueCounters& more) {
  sum.submitted += more.submitted;
  sum.ran += more.ran;
  sum.withdrawn += more.withdrawn;
  sum.abandoned += more.abandoned;
  sum.taken_over += more.taken_over;
}

// Some rounds stop in the middle of it all, some after the last submission.
WorkQueueCounters round(std::mt19937_64& random) {
  constexpr size_t kSubmitters = 6;
  constexpr size_t kQueues = 3;
  constexpr size_t kItemsEach = 1500;
  const auto executor = make_executor({.width = 1 + random() % 12,
                                       .name = "stress",
                                       .interleaving_seed = random()});
  std::vector<std::shared_ptr<WorkQueue>> queues;
  for (size_t i = 0; i < kQueues; ++i) {
    queues.push_back(
        executor->make_queue({.name = "q", .max_workers = random() % 4}));
  }
  std::vector<std::unique_ptr<Submitter>> submitters;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kSubmitters; ++i) {
    submitters.push_back(
        std::make_unique<Submitter>(*queues[i % kQueues], random()));
    threads.emplace_back([submitter = submitters.back().get()] {
      submitter->submit_and_withdraw(kItemsEach);
    });
  }
  std::atomic<bool> done = false;
  std::thread runner([&] {
    while (!done.load())
      executor->run_one() ? void() : absl::SleepFor(absl::Microseconds(20));
  });
  const auto mode = random() % 2 == 0 ? Executor::StopMode::kRunQueued
                                      : Executor::StopMode::kCancelQueued;
  if (random() % 2 == 0) {
    absl::SleepFor(absl::Microseconds(random() % 5000));
    executor->stop(mode);
  }
  for (std::thread& thread : threads) thread.join();
  executor->stop(mode);
  done.store(true);
  runner.join();

  WorkQueueCounters expected, counted;
  for (const auto& submitter : submitters) {
    submitter->check();
    submitter->add_to(expected);
  }
  for (const auto& queue : queues) add(counted, queue->counters());
  EXPECT_EQ(counted.submitted, expected.submitted);
  EXPECT_EQ(counted.ran, expected.ran);
  EXPECT_EQ(counted.withdrawn, expected.withdrawn);
  EXPECT_EQ(counted.abandoned, expected.abandoned);
  return counted;
}

TEST(ExecutorStress, EveryAcceptedItemMeetsExactlyOneEnd) {
  std::mt19937_64 random(test_seed(20090119));
  WorkQueueCounters sum;
  for (int i = 0; i < 12; ++i) add(sum, round(random));
  std::cout << "submitted " << sum.submitted << ", ran " << sum.ran
            << ", withdrawn " << sum.withdrawn << ", abandoned "
            << sum.abandoned << ", taken over " << sum.taken_over << std::endl;
  EXPECT_GT(sum.ran, 1000u);
  EXPECT_GT(sum.withdrawn, 100u);
}

}  // namespace
}  // namespace spindle

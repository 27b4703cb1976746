#include "threadpool/turn_taking.h"

#include "gtest/gtest.h"

namespace spindle {
namespace {

constexpr int64_t kMicrosecond = 1000;
constexpr int64_t kMillisecond = 1000 * kMicrosecond;
constexpr int64_t kSlow = DurationEstimate::kSlowNanoseconds;

// As many slow batches as it takes, all of them ending now.
void go_together(TurnTaking& turns, int64_t now) {
  for (uint32_t i = 0; i < TurnTaking::kSlowBatches; ++i) {
    ASSERT_TRUE(turns.one_at_a_time());
    turns.batch_ended(1, kSlow, /*slow=*/true, /*idle=*/true, now);
  }
}

// Items that take `alone_` each if one worker runs them, and leave a queue that
// never runs dry every `together_` if many do.
class Simulation {
 public:
  Simulation(int64_t alone, int64_t together)
      : alone_(alone), together_(together) {}

  // How much of the time the items had one worker.
  double share_alone(int64_t duration) {
    const int64_t begin = now_;
    int64_t alone_time = 0;
    while (now_ < begin + duration) {
      const int64_t before = now_;
      const bool one = turns_.one_at_a_time();
      step();
      if (one) alone_time += now_ - before;
    }
    return static_cast<double>(alone_time) / static_cast<double>(now_ - begin);
  }
  void change(int64_t alone, int64_t together) {
    alone_ = alone;
    together_ = together;
  }

 private:
  void step() {
    if (turns_.on_trial()) {
      const int64_t took = alone_ * TurnTaking::kItemsOfTrial;
      now_ += took;
      turns_.trial_ended(TurnTaking::kItemsOfTrial, took, now_);
      return;
    }
    const bool one = turns_.one_at_a_time();
    now_ += one ? alone_ : together_;
    // Together, each item looks as if it took a worker's whole wait.
    const int64_t looks = one ? alone_ : 8 * together_;
    turns_.batch_ended(1, looks, looks >= DurationEstimate::kSlowNanoseconds,
                       /*idle=*/false, now_);
  }

  TurnTaking turns_;
  int64_t alone_, together_;
  int64_t now_ = 0;
};

TEST(TurnTaking, ShortItemsHaveOneWorker) {
  Simulation simulation(5 * kMicrosecond, 5 * kMicrosecond);
  EXPECT_EQ(simulation.share_alone(100 * kMillisecond), 1.0);
}

TEST(TurnTaking, SlowItemsThatGainNothingTogetherHaveOneWorkerNearlyAlways) {
  Simulation simulation(50 * kMicrosecond, 80 * kMicrosecond);
  simulation.share_alone(500 * kMillisecond);
  EXPECT_GT(simulation.share_alone(1000 * kMillisecond), 0.95);
}

TEST(TurnTaking, SlowItemsThatGainTogetherHaveAWorkerEachNearlyAlways) {
  Simulation simulation(200 * kMicrosecond, 15 * kMicrosecond);
  simulation.share_alone(500 * kMillisecond);
  EXPECT_LT(simulation.share_alone(1000 * kMillisecond), 0.05);
}

TEST(TurnTaking, FollowsWhenItemsBecomeOtherOnes) {
  Simulation simulation(200 * kMicrosecond, 15 * kMicrosecond);
  simulation.share_alone(1000 * kMillisecond);
  simulation.change(50 * kMicrosecond, 80 * kMicrosecond);
  simulation.share_alone(200 * kMillisecond);
  EXPECT_GT(simulation.share_alone(500 * kMillisecond), 0.9);
  simulation.change(200 * kMicrosecond, 15 * kMicrosecond);
  simulation.share_alone(200 * kMillisecond);
  EXPECT_LT(simulation.share_alone(500 * kMillisecond), 0.1);
  simulation.change(5 * kMicrosecond, 5 * kMicrosecond);
  simulation.share_alone(200 * kMillisecond);
  EXPECT_EQ(simulation.share_alone(500 * kMillisecond), 1.0);
}

// It takes the average a few batches to forget one that was interrupted.
TEST(TurnTaking, AWorkerThatLostItsProcessorOnceIsNotHelped) {
  TurnTaking turns;
  for (int64_t i = 1; i <= 100; ++i) {
    const bool interrupted = i % TurnTaking::kSlowBatches == 0;
    turns.batch_ended(4, interrupted ? 2 * kMillisecond : 4 * kSlow - 1,
                      /*slow=*/true, /*idle=*/false, i * kMillisecond);
    ASSERT_TRUE(turns.one_at_a_time());
  }
}

// Bursts: what counts is how long the queue was busy, not how often it was.
TEST(TurnTaking, TimeWithNothingToDoDoesNotCount) {
  TurnTaking turns;
  int64_t now = kMillisecond;
  go_together(turns, now);
  ASSERT_FALSE(turns.one_at_a_time());
  while (!turns.on_trial()) {
    now += 10 * kMillisecond;
    turns.became_busy(now);
    now += 100 * kMicrosecond;  // 32 items in so little time
    turns.batch_ended(31, 31 * kSlow, /*slow=*/true, /*idle=*/false, now);
    turns.batch_ended(1, kSlow, /*slow=*/true, /*idle=*/true, now);
  }
  EXPECT_FALSE(turns.trial_ended(4, 4 * 80 * kMicrosecond, now));
  EXPECT_FALSE(turns.one_at_a_time());
}

TEST(TurnTaking, ATrialWhoseWorkerIsStuckShowsNothing) {
  TurnTaking turns;
  go_together(turns, kMillisecond);
  turns.batch_ended(1, kSlow, /*slow=*/true, /*idle=*/false, 10 * kMillisecond);
  ASSERT_TRUE(turns.on_trial());
  EXPECT_FALSE(turns.trial_ended(0, 0, 11 * kMillisecond));
  EXPECT_FALSE(turns.one_at_a_time());
}

}  // namespace
}  // namespace spindle

#include "gtest/gtest.h"
#include "threadpool/duration_estimate.h"
#include "threadpool/spin_policy.h"

namespace spindle {
namespace {

constexpr int64_t kMicrosecond = 1000;

TEST(DurationEstimate, BeginsShort) {
  const DurationEstimate estimate;
  EXPECT_FALSE(estimate.slow());
  EXPECT_EQ(estimate.batch(), DurationEstimate::kLargestBatch);
}

TEST(DurationEstimate, FindsSlowItemsAfterOneSample) {
  DurationEstimate estimate;
  estimate.add(200 * kMicrosecond, 1);
  EXPECT_TRUE(estimate.slow());
  EXPECT_EQ(estimate.batch(), 1u);
}

TEST(DurationEstimate, OneHungItemAmongShortOnesChangesLittle) {
  DurationEstimate estimate;
  for (int i = 0; i < 10; ++i) estimate.add(16 * kMicrosecond, 8);
  estimate.add(3'600'000'000 * kMicrosecond, 1);
  EXPECT_FALSE(estimate.slow());
  for (int i = 0; i < 20; ++i) estimate.add(16 * kMicrosecond, 8);
  EXPECT_EQ(estimate.batch(), DurationEstimate::kLargestBatch);
}

TEST(DurationEstimate, FollowsWhenItemsBecomeSlowAndShortAgain) {
  DurationEstimate estimate;
  estimate.add(2 * kMicrosecond, 1);
  for (int i = 0; i < 3; ++i) estimate.add(200 * kMicrosecond, 1);
  EXPECT_TRUE(estimate.slow());
  for (int i = 0; i < 20; ++i) estimate.add(2 * kMicrosecond, 1);
  EXPECT_FALSE(estimate.slow());
}

TEST(SpinPolicy, SpinsOnlyWhereWorkCameSoon) {
  SpinPolicy policy;
  EXPECT_FALSE(policy.worth_it());
  for (int i = 0; i < 20; ++i) policy.slept(1'000 * kMicrosecond);
  EXPECT_FALSE(policy.worth_it());
  for (int i = 0; i < 4; ++i) policy.slept(8 * kMicrosecond);
  EXPECT_TRUE(policy.worth_it());
}

TEST(SpinPolicy, GivesUpAfterAFewFailures) {
  SpinPolicy policy;
  for (int i = 0; i < 1000; ++i) policy.paid_off();
  EXPECT_TRUE(policy.worth_it());
  int failures = 0;
  while (policy.worth_it()) {
    policy.in_vain();
    ++failures;
  }
  EXPECT_LE(failures, 5);
}

}  // namespace
}  // namespace spindle

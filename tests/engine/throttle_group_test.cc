#include "engine/throttle_group.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

using Direction = ThrottleGroup::Direction;
using Member = ThrottleGroup::Member;

// How many units may start at once, or after `seconds` more of waiting.
int admitted(LeakyBucket* bucket, double seconds) {
  bucket->leak(absl::Seconds(seconds));
  int count = 0;
  for (; bucket->wait() == absl::ZeroDuration(); ++count) bucket->add(1);
  return count;
}

TEST(LeakyBucket, WithoutABurstRateATenthOfASecondGoesAtOnce) {
  LeakyBucket bucket(BucketLimit{.average = 100});
  EXPECT_EQ(admitted(&bucket, 0), 11);
  EXPECT_EQ(bucket.wait(), absl::Milliseconds(10));
  EXPECT_EQ(admitted(&bucket, 0.03), 3);
  EXPECT_EQ(admitted(&bucket, 1000), 11);
}

TEST(LeakyBucket, ABurstOfOneSecondGoesAtOnce) {
  LeakyBucket bucket(BucketLimit{.average = 100, .max = 1000});
  EXPECT_EQ(admitted(&bucket, 0), 1001);
  EXPECT_EQ(bucket.wait(), absl::Milliseconds(10));
  EXPECT_EQ(admitted(&bucket, 1), 100);
}

// 1000 a second for 3 seconds, then 100 a second.
TEST(LeakyBucket, ALongBurstGoesAtItsRate) {
  LeakyBucket bucket(
      BucketLimit{.average = 100, .max = 1000, .burst_length_seconds = 3});
  int in_first_seconds = admitted(&bucket, 0);
  EXPECT_EQ(in_first_seconds, 101);
  EXPECT_EQ(bucket.wait(), absl::Milliseconds(1));
  for (int i = 0; i < 30; ++i) in_first_seconds += admitted(&bucket, 0.1);
  EXPECT_NEAR(in_first_seconds, 3100, 30);
  int later = 0;
  for (int i = 0; i < 40; ++i) later += admitted(&bucket, 0.1);
  EXPECT_NEAR(later, 600, 110);
  EXPECT_NEAR(admitted(&bucket, 0.1), 10, 1);
}

TEST(LeakyBucket, NoLimitIsNoLimit) {
  LeakyBucket bucket;
  bucket.add(1e18);
  EXPECT_FALSE(bucket.is_limited());
  EXPECT_EQ(bucket.wait(), absl::ZeroDuration());
}

TEST(ThrottleLimits, ThatMakeNoSenseAreRefusedByName) {
  const auto with = [](BucketLimit ThrottleLimits::* member,
                       const BucketLimit& limit) {
    ThrottleLimits limits;
    limits.*member = limit;
    return limits;
  };
  using Limits = ThrottleLimits;
  ThrottleLimits both = with(&Limits::iops_total, {.average = 10});
  both.iops_read.average = 5;
  ThrottleLimits both_bps = with(&Limits::bps_total, {.average = 10});
  both_bps.bps_write.average = 5;
  ThrottleLimits size_only;
  size_only.iops_size_bytes = 4096;
  const struct {
    ThrottleLimits limits;
    absl::string_view says;
  } cases[] = {
      {both, "iops of all requests and of reads or writes"},
      {both_bps, "bps of all requests and of reads or writes"},
      {size_only, "iops-size requires"},
      {with(&Limits::bps_read, {.average = Limits::kMaxRate + 1}), "bps-read"},
      {with(&Limits::bps_read, {.average = 1, .burst_length_seconds = 0}),
       "burst length of 0"},
      {with(&Limits::iops_write, {.average = 1, .burst_length_seconds = 2}),
       "no burst rate"},
      {with(&Limits::iops_write, {.max = 2}), "no rate"},
      {with(&Limits::iops_write, {.average = 3, .max = 2}),
       "lower than its rate"},
      {with(&Limits::iops_write,
            {.average = 1, .max = Limits::kMaxRate, .burst_length_seconds = 2}),
       "too high"},
  };
  for (const auto& one : cases) {
    const absl::Status status = one.limits.check();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << one.says;
    EXPECT_TRUE(absl::StrContains(status.message(), one.says)) << status;
  }
  EXPECT_TRUE(ThrottleLimits().check().ok());
  EXPECT_TRUE(with(&Limits::bps_read,
                   {.average = 1, .max = 2, .burst_length_seconds = 60})
                  .check()
                  .ok());
}

// ---- Groups, by a clock that stands still -----------------------------------

struct FakeGroup {
  explicit FakeGroup(const ThrottleLimits& limits)
      : group(std::make_shared<ThrottleGroup>(
            limits, ThrottleGroup::Clock{[this] { return time; }})) {}
  // Lets `milliseconds` pass.
  void advance(int milliseconds) {
    time += absl::Milliseconds(milliseconds);
    group->run_due();
  }
  absl::Time time = absl::UnixEpoch();
  const std::shared_ptr<ThrottleGroup> group;
};

// Notes the order in which requests start.
struct Request final : ThrottleGroup::Waiter {
  Request(std::string text, std::vector<std::string>* order)
      : name(std::move(text)), order(order) {}
  bool claim_throttled() override { return !cancelled; }
  void start_throttled() override { order->push_back(name); }
  const std::string name;
  std::vector<std::string>* const order;
  bool cancelled = false;
};

using Names = std::vector<std::string>;

ThrottleLimits ten_operations() {
  ThrottleLimits limits;
  limits.iops_total.average = 10;  // two at once, then one each 100 ms
  return limits;
}

TEST(ThrottleGroup, StartsInOrderOfArrival) {
  FakeGroup fake(ten_operations());
  Member member(fake.group);
  Names order;
  Request a("a", &order), b("b", &order), c("c", &order), d("d", &order);
  EXPECT_TRUE(member.admit_or_queue(&a, Direction::kRead, 512));
  EXPECT_TRUE(member.admit_or_queue(&b, Direction::kRead, 512));
  EXPECT_FALSE(member.admit_or_queue(&c, Direction::kRead, 512));
  EXPECT_FALSE(member.admit_or_queue(&d, Direction::kRead, 512));
  EXPECT_EQ(fake.group->run_due(), absl::Milliseconds(100));
  fake.advance(99);
  EXPECT_EQ(order, Names());
  fake.advance(1);
  EXPECT_EQ(order, Names({"c"}));
  // There is room for one, but not for one that comes now.
  fake.time += absl::Milliseconds(100);
  Request e("e", &order);
  EXPECT_FALSE(member.admit_or_queue(&e, Direction::kRead, 512));
  fake.group->run_due();
  EXPECT_EQ(order, Names({"c", "d"}));
  fake.advance(100);
  EXPECT_EQ(order, Names({"c", "d", "e"}));
  EXPECT_EQ(fake.group->run_due(), absl::InfiniteDuration());
}

TEST(ThrottleGroup, DirectionsTakeTurns) {
  FakeGroup fake(ten_operations());
  Member member(fake.group);
  Names order;
  Request now("now", &order), also("also", &order);
  Request r1("r1", &order), r2("r2", &order), r3("r3", &order);
  Request w1("w1", &order), w2("w2", &order);
  EXPECT_TRUE(member.admit_or_queue(&now, Direction::kRead, 1));
  EXPECT_TRUE(member.admit_or_queue(&also, Direction::kRead, 1));
  for (Request* request : {&r1, &r2, &r3})
    EXPECT_FALSE(member.admit_or_queue(request, Direction::kRead, 1));
  for (Request* request : {&w1, &w2})
    EXPECT_FALSE(member.admit_or_queue(request, Direction::kWrite, 1));
  for (int i = 0; i < 5; ++i) fake.advance(100);
  ASSERT_EQ(order.size(), 5u);
  // Whoever begins, neither waits for two of the others.
  EXPECT_NE(order[0][0], order[1][0]);
  EXPECT_NE(order[1][0], order[2][0]);
  EXPECT_NE(order[2][0], order[3][0]);
}

TEST(ThrottleGroup, LimitsOfOneDirectionDoNotTouchTheOther) {
  ThrottleLimits limits;
  limits.iops_write.average = 10;
  FakeGroup fake(limits);
  Member member(fake.group);
  Names order;
  Request w("w", &order), r("r", &order);
  while (member.admit_or_queue(&w, Direction::kWrite, 1)) {
  }
  for (int i = 0; i < 100; ++i)
    EXPECT_TRUE(member.admit_or_queue(&r, Direction::kRead, 1));
  fake.advance(100);
  EXPECT_EQ(order, Names({"w"}));
}

TEST(ThrottleGroup, BytesAndLongRequestsCount) {
  ThrottleLimits limits;
  limits.bps_total.average = 100'000;  // 10,000 at once
  FakeGroup bytes(limits);
  Member by_bytes(bytes.group);
  Names order;
  Request a("a", &order), b("b", &order);
  EXPECT_TRUE(by_bytes.admit_or_queue(&a, Direction::kWrite, 30'000));
  EXPECT_FALSE(by_bytes.admit_or_queue(&b, Direction::kWrite, 512));
  EXPECT_EQ(bytes.group->run_due(), absl::Milliseconds(200));
  bytes.advance(200);
  EXPECT_EQ(order, Names({"b"}));

  ThrottleLimits sized = ten_operations();
  sized.iops_size_bytes = 4096;
  FakeGroup operations(sized);
  Member by_size(operations.group);
  EXPECT_TRUE(by_size.admit_or_queue(&a, Direction::kWrite, 10 * 4096));
  EXPECT_FALSE(by_size.admit_or_queue(&b, Direction::kWrite, 512));
  EXPECT_EQ(operations.group->run_due(), absl::Milliseconds(900));
  operations.advance(900);
  EXPECT_EQ(order, Names({"b", "b"}));
}

TEST(ThrottleGroup, WhatIsCancelledCostsNothing) {
  FakeGroup fake(ten_operations());
  Member member(fake.group);
  Names order;
  Request a("a", &order), b("b", &order), c("c", &order), d("d", &order);
  member.admit_or_queue(&a, Direction::kRead, 1);
  member.admit_or_queue(&a, Direction::kRead, 1);
  for (Request* request : {&b, &c, &d})
    EXPECT_FALSE(member.admit_or_queue(request, Direction::kRead, 1));
  // Claimed by its canceller, who has forgotten one and not yet the other.
  b.cancelled = true;
  c.cancelled = true;
  member.forget(&b);
  EXPECT_EQ(fake.group->waiting_count(), 2u);
  fake.advance(100);
  EXPECT_EQ(order, Names({"d"}));
  member.forget(&c);
  EXPECT_EQ(fake.group->waiting_count(), 0u);
}

TEST(ThrottleGroup, ADrainLetsGoOfItsMembersRequestsOnly) {
  FakeGroup fake(ten_operations());
  Member member(fake.group);
  Member other(fake.group);
  Names order;
  Request a("a", &order), b("b", &order), c("c", &order), d("d", &order);
  member.admit_or_queue(&a, Direction::kRead, 1);
  member.admit_or_queue(&a, Direction::kRead, 1);
  EXPECT_FALSE(member.admit_or_queue(&b, Direction::kRead, 1));
  EXPECT_FALSE(other.admit_or_queue(&c, Direction::kRead, 1));
  member.begin_drain();
  EXPECT_EQ(order, Names({"b"}));
  EXPECT_TRUE(member.admit_or_queue(&d, Direction::kRead, 1));
  member.end_drain();
  EXPECT_FALSE(member.admit_or_queue(&d, Direction::kRead, 1));
  fake.advance(100);
  EXPECT_EQ(order, Names({"b", "c"}));
  fake.advance(100);
  EXPECT_EQ(order, Names({"b", "c", "d"}));
}

// ---- The real clock: only what must not be too early is measured ------------

TEST(ThrottleGroup, WhoeverWaitsHereIsItsOwnClock) {
  ThrottleLimits limits;
  limits.iops_total.average = 200;  // 21 at once, then one each 5 ms
  const auto group = std::make_shared<ThrottleGroup>(limits);
  Member member(group);
  const absl::Time begin = absl::Now();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&member, t] {
      const Direction direction =
          t % 2 == 0 ? Direction::kRead : Direction::kWrite;
      for (int i = 0; i < 15; ++i) member.wait_here(direction, 512);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(190));
}

TEST(ThrottleGroup, ItsThreadStartsWhatWaits) {
  struct Counted final : ThrottleGroup::Waiter {
    bool claim_throttled() override { return true; }
    void start_throttled() override { started.store(true); }
    std::atomic<bool> started{false};
  };
  ThrottleLimits limits;
  limits.iops_read.average = 200;
  const auto group = std::make_shared<ThrottleGroup>(limits);
  Member member(group);
  const absl::Time begin = absl::Now();
  std::vector<std::unique_ptr<Counted>> waiters;
  int at_once = 0;
  for (int i = 0; i < 60; ++i) {
    waiters.push_back(std::make_unique<Counted>());
    if (member.admit_or_queue(waiters.back().get(), Direction::kRead, 1)) {
      ++at_once;
      waiters.back()->started.store(true);
    }
  }
  EXPECT_GE(at_once, 21);
  for (const auto& waiter : waiters) {
    while (!waiter->started.load()) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(190));
}

}  // namespace
}  // namespace spindle

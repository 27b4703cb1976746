#include "formats/cluster/in_flight.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

namespace spindle {
namespace {

using Pin = InFlight::Pin;

TEST(InFlight, PinsEveryClusterOfARunUntilThePinGoes) {
  InFlight in_flight;
  {
    const Pin pin(&in_flight, {10, 3});
    for (uint64_t cluster : {10, 11, 12})
      EXPECT_TRUE(in_flight.is_pinned(cluster));
    EXPECT_FALSE(in_flight.is_pinned(9));
    EXPECT_FALSE(in_flight.is_pinned(13));
  }
  for (uint64_t cluster = 9; cluster < 14; ++cluster)
    EXPECT_FALSE(in_flight.is_pinned(cluster));
}

TEST(InFlight, TheLastPinCounts) {
  InFlight in_flight;
  Pin first(&in_flight, {5, 1});
  Pin second(&in_flight, {5, 2});
  first.release();
  EXPECT_TRUE(in_flight.is_pinned(5));
  first.release();  // again: nothing
  EXPECT_TRUE(in_flight.is_pinned(5));
  second.release();
  EXPECT_FALSE(in_flight.is_pinned(5));
  EXPECT_FALSE(in_flight.is_pinned(6));
}

TEST(InFlight, MovingKeepsOnePin) {
  InFlight in_flight;
  Pin first(&in_flight, {7, 1});
  Pin second(std::move(first));
  EXPECT_TRUE(in_flight.is_pinned(7));
  Pin third(&in_flight, {8, 1});
  third = std::move(second);
  EXPECT_TRUE(in_flight.is_pinned(7));
  EXPECT_FALSE(in_flight.is_pinned(8));
  third = Pin();
  EXPECT_FALSE(in_flight.is_pinned(7));
}

TEST(InFlight, ARunMayBeLongerThanTheCounters) {
  InFlight in_flight;
  {
    const Pin pin(&in_flight, {100, 10000});
    EXPECT_TRUE(in_flight.is_pinned(100));
    EXPECT_TRUE(in_flight.is_pinned(10099));
  }
  for (uint64_t cluster = 0; cluster < 4096; ++cluster)
    ASSERT_FALSE(in_flight.is_pinned(cluster));
}

TEST(InFlight, ManyThreadsLeaveNothingBehind) {
  InFlight in_flight;
  const Pin held(&in_flight, {3, 1});
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&in_flight, t] {
      for (uint64_t i = 0; i < 2000; ++i) {
        const Pin pin(&in_flight, {(t + i) % 8, 1 + i % 3});
        ASSERT_TRUE(in_flight.is_pinned((t + i) % 8));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (uint64_t cluster = 0; cluster < 16; ++cluster)
    EXPECT_EQ(in_flight.is_pinned(cluster), cluster == 3) << cluster;
}

}  // namespace
}  // namespace spindle

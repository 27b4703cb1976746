#include "formats/qcow2/pending_frees.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

namespace spindle::qcow2 {
namespace {

using Clusters = std::vector<uint64_t>;

TEST(PendingFrees, NothingIsReclaimableBeforeItsDropIsDurable) {
  InFlight in_flight;
  PendingFrees pending;
  pending.add_dropped({5, 2});
  EXPECT_EQ(pending.count(), 2u);
  EXPECT_EQ(pending.take_reclaimable(in_flight), Clusters());
  const auto taken = pending.take_dropped();
  EXPECT_EQ(taken, (std::vector<HostClusters>{{5, 2}}));
  // On its way through a round it still counts.
  EXPECT_EQ(pending.count(), 2u);
  EXPECT_EQ(pending.take_reclaimable(in_flight), Clusters());
  pending.add_durable(taken);
  EXPECT_EQ(pending.take_reclaimable(in_flight), (Clusters{5, 6}));
  EXPECT_EQ(pending.count(), 0u);
}

TEST(PendingFrees, AFailedRoundPutsDropsBack) {
  InFlight in_flight;
  PendingFrees pending;
  pending.add_dropped({5, 1});
  const auto taken = pending.take_dropped();
  pending.add_dropped({9, 1});
  pending.put_back(taken);
  EXPECT_EQ(pending.count(), 2u);
  EXPECT_EQ(pending.take_reclaimable(in_flight), Clusters());
  EXPECT_EQ(pending.take_dropped().size(), 2u);
}

TEST(PendingFrees, PinnedClustersWait) {
  InFlight in_flight;
  PendingFrees pending;
  pending.add_durably_dropped({20, 3});
  InFlight::Pin pin(&in_flight, {21, 1});
  EXPECT_EQ(pending.take_reclaimable(in_flight), (Clusters{20, 22}));
  EXPECT_EQ(pending.count(), 1u);
  pin.release();
  EXPECT_EQ(pending.take_reclaimable(in_flight), Clusters{21});
}

TEST(PendingFrees, EachMentionIsOneReference) {
  InFlight in_flight;
  PendingFrees pending;
  pending.add_durably_dropped({4, 2});
  pending.add_durably_dropped({3, 2});
  EXPECT_EQ(pending.count(), 4u);
  EXPECT_EQ(pending.take_reclaimable(in_flight), (Clusters{3, 4, 4, 5}));
}

TEST(PendingFrees, WhatCouldNotBeGivenUpComesBack) {
  InFlight in_flight;
  PendingFrees pending;
  pending.add_durably_dropped({1, 3});
  const Clusters taken = pending.take_reclaimable(in_flight);
  EXPECT_EQ(pending.count(), 0u);
  pending.put_back_durable(taken);
  EXPECT_EQ(pending.count(), 3u);
  EXPECT_EQ(pending.take_reclaimable(in_flight), taken);
}

TEST(PendingFrees, KnowsTheLowest) {
  PendingFrees pending;
  EXPECT_EQ(pending.lowest(), std::numeric_limits<uint64_t>::max());
  pending.add_dropped({30, 5});
  EXPECT_EQ(pending.lowest(), 30u);
  pending.add_durably_dropped({12, 1});
  EXPECT_EQ(pending.lowest(), 12u);
  pending.add_dropped({});
  EXPECT_EQ(pending.lowest(), 12u);
}

TEST(PendingFrees, ThreadsLoseNothing) {
  constexpr uint64_t kPerThread = 2000;
  InFlight in_flight;
  PendingFrees pending;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&pending, t] {
      for (uint64_t i = 0; i < kPerThread; ++i)
        pending.add_dropped({t * kPerThread + i, 1});
    });
  }
  Clusters all;
  for (int round = 0; all.size() < 3 * kPerThread; ++round) {
    const auto taken = pending.take_dropped();
    if (round % 3 == 0) {
      pending.put_back(taken);
    } else {
      pending.add_durable(taken);
    }
    const Clusters some = pending.take_reclaimable(in_flight);
    all.insert(all.end(), some.begin(), some.end());
  }
  for (std::thread& thread : threads) thread.join();
  std::sort(all.begin(), all.end());
  for (uint64_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i);
  EXPECT_EQ(pending.count(), 0u);
}

}  // namespace
}  // namespace spindle::qcow2

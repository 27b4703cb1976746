#include "engine/range_tracker.h"

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Hold = RangeTracker::Hold;
using Mode = RangeTracker::Mode;

bool can_hold(RangeTracker* tracker, ByteRange range, Mode mode) {
  return Hold(tracker, range, mode, RangeTracker::kTry).held();
}

TEST(RangeTracker, SharedHoldersOverlap) {
  RangeTracker tracker;
  Hold hold(&tracker, {0, 100}, Mode::kShared);
  EXPECT_TRUE(can_hold(&tracker, {50, 100}, Mode::kShared));
}

TEST(RangeTracker, ExclusiveHolderExcludesWhatItOverlaps) {
  RangeTracker tracker;
  Hold hold(&tracker, {100, 100}, Mode::kExclusive);
  for (Mode mode : {Mode::kShared, Mode::kExclusive}) {
    EXPECT_FALSE(can_hold(&tracker, {199, 1}, mode));
    EXPECT_FALSE(can_hold(&tracker, {0, 101}, mode));
    EXPECT_TRUE(can_hold(&tracker, {200, 10}, mode));
    EXPECT_TRUE(can_hold(&tracker, {0, 100}, mode));
  }
}

TEST(RangeTracker, SharedHolderExcludesExclusiveOnesThatOverlap) {
  RangeTracker tracker;
  std::optional<Hold> hold;
  hold.emplace(&tracker, ByteRange{100, 100}, Mode::kShared);
  EXPECT_FALSE(can_hold(&tracker, {150, 10}, Mode::kExclusive));
  EXPECT_TRUE(can_hold(&tracker, {200, 10}, Mode::kExclusive));
  hold.reset();
  EXPECT_TRUE(can_hold(&tracker, {150, 10}, Mode::kExclusive));
}

TEST(RangeTracker, RangesAtTheEdgesOfTheNumbersAreTracked) {
  RangeTracker tracker;
  Hold top(&tracker, {UINT64_MAX - 10, 10}, Mode::kShared);
  Hold empty(&tracker, {0, 0}, Mode::kShared);
  EXPECT_FALSE(can_hold(&tracker, {UINT64_MAX - 5, 1}, Mode::kExclusive));
  EXPECT_TRUE(can_hold(&tracker, {0, 1}, Mode::kExclusive));
}

// More shared holders than there are slots for the quick way.
TEST(RangeTracker, ManySharedHoldersAreAllTracked) {
  RangeTracker tracker;
  std::array<std::optional<Hold>, 100> holds;
  for (size_t i = 0; i < holds.size(); ++i) {
    holds[i].emplace(&tracker, ByteRange{i * 10, 10}, Mode::kShared);
  }
  for (size_t i = 0; i < holds.size(); ++i) {
    EXPECT_FALSE(can_hold(&tracker, {i * 10 + 5, 1}, Mode::kExclusive));
    holds[i].reset();
    EXPECT_TRUE(can_hold(&tracker, {i * 10 + 5, 1}, Mode::kExclusive));
  }
}

TEST(RangeTracker, AWaiterIsServedBeforeThoseThatCameLater) {
  RangeTracker tracker;
  std::optional<Hold> first;
  first.emplace(&tracker, ByteRange{0, 10}, Mode::kShared);
  std::atomic<bool> released{false};
  std::thread writer([&] {
    Hold hold(&tracker, {0, 20}, Mode::kExclusive);
    EXPECT_TRUE(released);
  });
  // Once the exclusive hold waits, a shared one no longer passes it, not even
  // where only the waiting one is in its way.
  while (can_hold(&tracker, {15, 1}, Mode::kShared)) std::this_thread::yield();
  EXPECT_TRUE(can_hold(&tracker, {20, 1}, Mode::kShared));
  released = true;
  first.reset();
  writer.join();
  EXPECT_TRUE(can_hold(&tracker, {0, 20}, Mode::kExclusive));
}

TEST(RangeTracker, ThoseBehindAFailedTryAreServed) {
  RangeTracker tracker;
  std::optional<Hold> first;
  first.emplace(&tracker, ByteRange{0, 10}, Mode::kExclusive);
  absl::Notification done;
  std::thread waiter([&] {
    Hold hold(&tracker, {5, 10}, Mode::kShared);
    done.Notify();
  });
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(can_hold(&tracker, {0, 20}, Mode::kExclusive));
  }
  first.reset();
  done.WaitForNotification();
  waiter.join();
}

// Exclusive holders change plain cells, shared ones read them: a data race for
// ThreadSanitizer, a torn pair otherwise, if both were let in.
TEST(RangeTracker, ExclusionHoldsUnderManyThreads) {
  const uint64_t seed = testing::test_seed();
  constexpr size_t kCells = 32;
  struct Cell {
    uint64_t a = 0;
    uint64_t b = 0;
  };
  std::array<Cell, kCells> cells;
  std::atomic<uint64_t> exclusive_rounds{0};
  RangeTracker tracker;
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(seed + i);
      for (int round = 0; round < 3000; ++round) {
        const uint64_t begin = random() % kCells;
        const uint64_t count =
            1 + random() % std::min<uint64_t>(4, kCells - begin);
        const bool exclusive = random() % 4 == 0;
        Hold hold(&tracker, {begin, count},
                  exclusive ? Mode::kExclusive : Mode::kShared);
        for (uint64_t c = begin; c < begin + count; ++c) {
          if (exclusive) {
            ++cells[c].a;
            ++cells[c].b;
            exclusive_rounds.fetch_add(1, std::memory_order_relaxed);
          } else {
            EXPECT_EQ(cells[c].a, cells[c].b);
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (const Cell& cell : cells) sum += cell.a;
  EXPECT_EQ(sum, exclusive_rounds.load());
}

}  // namespace
}  // namespace spindle

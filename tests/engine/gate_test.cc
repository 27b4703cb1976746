#include "engine/gate.h"

#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(Gate, ManyMayBeInside) {
  Gate gate;
  Gate::Passage here(&gate);
  std::thread other([&gate] { Gate::Passage there(&gate); });
  other.join();
}

TEST(Gate, TryPassageIsRefusedWhileClosed) {
  Gate gate;
  {
    Gate::Closure closure(&gate);
    Gate::TryPassage attempt(&gate);
    EXPECT_FALSE(attempt.entered());
  }
  Gate::TryPassage attempt(&gate);
  EXPECT_TRUE(attempt.entered());
}

TEST(Gate, ClosingWaitsForThoseInside) {
  Gate gate;
  std::atomic<bool> left{false};
  std::optional<Gate::Passage> inside;
  inside.emplace(&gate);
  absl::Notification closing;
  std::thread closer([&] {
    closing.Notify();
    Gate::Closure closure(&gate);
    EXPECT_TRUE(left);
  });
  closing.WaitForNotification();
  // The gate turns newcomers away before those inside have left.
  while (Gate::TryPassage(&gate).entered()) std::this_thread::yield();
  left = true;
  inside.reset();
  closer.join();
}

TEST(Gate, WaitersEnterWhenItOpens) {
  Gate gate;
  std::atomic<bool> open{false};
  std::optional<Gate::Closure> closure;
  closure.emplace(&gate);
  absl::Notification started;
  std::thread waiter([&] {
    started.Notify();
    Gate::Passage passage(&gate);
    EXPECT_TRUE(open);
  });
  started.WaitForNotification();
  open = true;
  closure.reset();
  waiter.join();
}

// Nobody is inside while the gate is closed, whoever closes it: the plain
// counter is a data race (for ThreadSanitizer) and a wrong sum otherwise.
TEST(Gate, ClosersHaveTheImageToThemselves) {
  constexpr int kRounds = 2000;
  Gate gate;
  std::atomic<int> inside{0};
  int changes = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        Gate::Passage passage(&gate);
        inside.fetch_add(1);
        inside.fetch_sub(1);
      }
    });
  }
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds / 10; ++round) {
        Gate::Closure closure(&gate);
        EXPECT_EQ(inside.load(), 0);
        ++changes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(changes, 2 * (kRounds / 10));
}

}  // namespace
}  // namespace spindle

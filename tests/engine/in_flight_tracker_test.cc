#include "engine/in_flight_tracker.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

bool no_help() { return false; }

TEST(InFlightTracker, DrainWaitsForWhatCameBeforeIt) {
  InFlightTracker tracker;
  const Generation before = tracker.enter();
  absl::Notification drained;
  absl::Notification begun;
  std::thread drainer([&] {
    InFlightTracker::Drain drain(&tracker);
    begun.Notify();
    drain.wait(no_help, false);
    drained.Notify();
  });
  begun.WaitForNotification();
  EXPECT_FALSE(drained.HasBeenNotified());
  tracker.leave(before);
  drained.WaitForNotification();
  drainer.join();
}

TEST(InFlightTracker, ADrainSleepsUntilARequestLeavesHere) {
  InFlightTracker tracker;
  absl::Notification entered;
  absl::Notification drained;
  absl::Notification sleeps;
  std::thread here([&] {
    const Generation generation = tracker.enter();
    entered.Notify();
    sleeps.WaitForNotification();
    EXPECT_FALSE(drained.HasBeenNotified());
    tracker.leave_here(generation);
  });
  entered.WaitForNotification();
  std::thread drainer([&] {
    InFlightTracker::Drain drain(&tracker);
    bool asked = false;
    const auto help = [&] {
      if (!asked) sleeps.Notify();
      asked = true;
      return false;
    };
    drain.wait(help, true);
    drained.Notify();
  });
  drained.WaitForNotification();
  here.join();
  drainer.join();
  tracker.wait_until_abandoned();
}

TEST(InFlightTracker, DrainDoesNotWaitForWhatCameLater) {
  InFlightTracker tracker;
  Generation later = 0;
  {
    InFlightTracker::Drain drain(&tracker);
    const Generation before = tracker.enter();
    int helped = 0;
    // The first time it is asked for help, a later request enters and stays.
    const auto help = [&] {
      if (helped++ > 0) return false;
      later = tracker.enter();
      EXPECT_EQ(later, drain.later_generation());
      tracker.leave(before);
      return true;
    };
    drain.wait(help, true);
    EXPECT_EQ(helped, 1);
  }
  tracker.leave(later);
  tracker.wait_until_abandoned();
}

// What a drain lets through is not touched any more when it returns.
TEST(InFlightTracker, NothingIsInsideAfterADrain) {
  InFlightTracker tracker;
  std::array<std::atomic<int>, 2> inside{};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const Generation generation = tracker.enter();
        ++inside[generation];
        --inside[generation];
        tracker.leave(generation);
      }
    });
  }
  for (int i = 0; i < 2000; ++i) {
    InFlightTracker::Drain drain(&tracker);
    drain.wait(no_help, false);
    EXPECT_EQ(inside[1 - drain.later_generation()], 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  tracker.wait_until_abandoned();
}

}  // namespace
}  // namespace spindle

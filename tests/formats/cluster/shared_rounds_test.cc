#include "formats/cluster/shared_rounds.h"

#include <atomic>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(SharedRounds, OneRoundServesAllWhoWaited) {
  SharedRounds rounds;
  std::atomic<int> count{0};
  absl::Notification running;
  absl::Notification go_on;
  std::thread first([&] {
    EXPECT_TRUE(rounds
                    .flush([&] {
                      ++count;
                      running.Notify();
                      go_on.WaitForNotification();
                      return absl::OkStatus();
                    })
                    .ok());
  });
  running.WaitForNotification();
  const auto fails = [&] {
    ++count;
    return absl::UnknownError("no");
  };
  std::vector<std::thread> others;
  for (int i = 0; i < 3; ++i) {
    others.emplace_back(
        [&] { EXPECT_EQ(rounds.flush(fails), absl::UnknownError("no")); });
  }
  while (rounds.waiting_count() != 3) std::this_thread::yield();
  EXPECT_EQ(count, 1);
  go_on.Notify();
  first.join();
  for (std::thread& other : others) other.join();
  // The round that ran when they came has not seen what they completed.
  EXPECT_EQ(count, 2);
  EXPECT_TRUE(rounds.flush([] { return absl::OkStatus(); }).ok());
}

TEST(SharedRounds, WriteBackIsLeftToWhoIsAtItUnlessOutrun) {
  SharedRounds rounds;
  std::atomic<int> count{0};
  absl::Notification running;
  absl::Notification go_on;
  std::thread first([&] {
    EXPECT_TRUE(rounds
                    .write_back(/*is_overfull=*/false,
                                [&] {
                                  ++count;
                                  running.Notify();
                                  go_on.WaitForNotification();
                                  return absl::OkStatus();
                                })
                    .ok());
  });
  running.WaitForNotification();
  const auto run = [&] {
    ++count;
    return absl::OkStatus();
  };
  EXPECT_TRUE(rounds.write_back(/*is_overfull=*/false, run).ok());
  EXPECT_EQ(count, 1);
  std::thread outrunning(
      [&] { EXPECT_TRUE(rounds.write_back(/*is_overfull=*/true, run).ok()); });
  while (rounds.waiting_count() != 1) std::this_thread::yield();
  go_on.Notify();
  first.join();
  outrunning.join();
  EXPECT_EQ(count, 2);
}

}  // namespace
}  // namespace spindle

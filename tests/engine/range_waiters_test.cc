#include "engine/range_waiters.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"
#include "tests/engine/owned_request.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using State = AioRequest::State;

// A request that a worker has, and nobody else.
class RunningRequest : public OwnedRequest {
 public:
  RunningRequest() { get()->state.store(State::kRunning); }
};

std::vector<AioRequest*> released(RangeWaiters* waiters) {
  RequestList retry;
  waiters->release(&retry);
  std::vector<AioRequest*> requests;
  while (AioRequest* request = retry.pop_front()) requests.push_back(request);
  return requests;
}

using Requests = std::vector<AioRequest*>;

TEST(RangeWaiters, ParkedRequestTriesAgainAfterTheNextRelease) {
  RangeWaiters waiters;
  RunningRequest request;
  EXPECT_TRUE(waiters.park(request.get(), waiters.releases()));
  EXPECT_EQ(request.state(), State::kWaiting);
  EXPECT_TRUE(request->waits_for_range);
  EXPECT_EQ(released(&waiters), Requests{request.get()});
  EXPECT_EQ(request.state(), State::kRunning);
  EXPECT_FALSE(request->waits_for_range);
  EXPECT_EQ(released(&waiters), Requests{});
  EXPECT_EQ(request.state(), State::kRunning);
}

TEST(RangeWaiters, CountsReleasesAlsoWhileNobodyWaits) {
  RangeWaiters waiters;
  RunningRequest request;
  EXPECT_EQ(waiters.releases(), 0u);
  EXPECT_EQ(released(&waiters), Requests{});
  EXPECT_EQ(waiters.releases(), 1u);
  ASSERT_TRUE(waiters.park(request.get(), 1));
  EXPECT_EQ(waiters.releases(), 1u);
  released(&waiters);
  EXPECT_EQ(waiters.releases(), 2u);
}

// The one it met may be the one that is over.
TEST(RangeWaiters, DoesNotParkWhereThereWasAReleaseSince) {
  RangeWaiters waiters;
  RunningRequest late;
  const uint64_t seen = waiters.releases();
  released(&waiters);
  EXPECT_FALSE(waiters.park(late.get(), seen));
  EXPECT_EQ(late.state(), State::kRunning);
  EXPECT_FALSE(late->waits_for_range);
  // Nor does it count as one that waits.
  RunningRequest other;
  ASSERT_TRUE(waiters.park(other.get(), waiters.releases()));
  EXPECT_EQ(released(&waiters), Requests{other.get()});
  EXPECT_TRUE(waiters.park(late.get(), waiters.releases()));
  EXPECT_EQ(released(&waiters), Requests{late.get()});
}

TEST(RangeWaiters, AllTryAgainInOrderOfArrivalBehindWhatTheListHas) {
  RangeWaiters waiters;
  std::array<RunningRequest, 4> requests;
  for (size_t i = 1; i < requests.size(); ++i) {
    ASSERT_TRUE(waiters.park(requests[i].get(), waiters.releases()));
  }
  RequestList retry;
  retry.push_back(requests[0].get());
  waiters.release(&retry);
  for (const RunningRequest& request : requests) {
    EXPECT_EQ(retry.pop_front(), request.get());
    EXPECT_EQ(request.state(), State::kRunning);
  }
  EXPECT_TRUE(retry.empty());
}

TEST(RangeWaiters, MayParkAgainAndAgain) {
  RangeWaiters waiters;
  RunningRequest request;
  for (uint64_t round = 0; round < 3; ++round) {
    ASSERT_TRUE(waiters.park(request.get(), round));
    ASSERT_EQ(released(&waiters), Requests{request.get()});
  }
}

TEST(RangeWaiters, LeavesToItsCancellerWhatThatHasClaimed) {
  RangeWaiters waiters;
  RunningRequest claimed;
  RunningRequest other;
  ASSERT_TRUE(waiters.park(claimed.get(), 0));
  ASSERT_TRUE(waiters.park(other.get(), 0));
  ASSERT_TRUE(claimed.claim());
  EXPECT_EQ(released(&waiters), Requests{other.get()});
  EXPECT_EQ(claimed.state(), State::kCancelling);
  waiters.forget(claimed.get());
  // It is in no list any more, so that another one may take it.
  RequestList list;
  list.push_back(claimed.get());
  EXPECT_EQ(list.pop_front(), claimed.get());
}

TEST(RangeWaiters, ForgetsOneOfSeveral) {
  RangeWaiters waiters;
  std::array<RunningRequest, 3> requests;
  for (RunningRequest& request : requests) {
    ASSERT_TRUE(waiters.park(request.get(), 0));
  }
  ASSERT_TRUE(requests[1].claim());
  waiters.forget(requests[1].get());
  EXPECT_EQ(requests[1].state(), State::kCancelling);
  RequestList list;
  list.push_back(requests[1].get());
  list.remove(requests[1].get());
  EXPECT_EQ(released(&waiters),
            (Requests{requests[0].get(), requests[2].get()}));
}

// A miscount would make the next release overlook the one that waits.
TEST(RangeWaiters, ForgettingWhatDoesNotWaitChangesNothing) {
  RangeWaiters waiters;
  RunningRequest stranger;
  RunningRequest waiting;
  waiters.forget(stranger.get());
  ASSERT_TRUE(waiters.park(waiting.get(), 0));
  EXPECT_EQ(released(&waiters), Requests{waiting.get()});
  waiters.forget(waiting.get());
  RunningRequest twice;
  ASSERT_TRUE(waiters.park(twice.get(), 1));
  ASSERT_TRUE(twice.claim());
  waiters.forget(twice.get());
  ASSERT_TRUE(waiters.park(waiting.get(), 1));
  EXPECT_EQ(released(&waiters), Requests{waiting.get()});
}

// What a device does with it: workers that lock a range or park, and a
// canceller.  A release that overlooks a waiter leaves it waiting for ever,
// which shows as a hang.
class Device {
 public:
  static constexpr size_t kRequests = 24;
  static constexpr int kTurns = 400;
  static constexpr size_t kWorkers = 4;
  static constexpr size_t kRanges = 2;

  explicit Device(uint64_t seed) : seed_(seed) {
    for (size_t i = 0; i < kRequests; ++i) ready_.push_back(i);
  }

  void work(size_t worker) {
    std::mt19937_64 random(seed_ + worker);
    while (over_.load() < kRequests) {
      size_t index = 0;
      if (take(&index)) {
        attempt(index, &random);
      } else {
        std::this_thread::yield();
      }
    }
  }

  void cancel() {
    std::mt19937_64 random(seed_ + kWorkers);
    while (over_.load() < kRequests) {
      // Few, so that most have their turns.
      if (random() % 4096 != 0) {
        std::this_thread::yield();
        continue;
      }
      RunningRequest& request = requests_[random() % kRequests];
      if (!request.claim()) continue;
      EXPECT_TRUE(request->waits_for_range);
      waiters_.forget(request.get());
      request->state.store(State::kWithdrawn);
      withdrawn_.fetch_add(1);
      over_.fetch_add(1);
    }
  }

  void expect_all_over() {
    uint64_t turns = 0;
    for (uint64_t of_range : turns_) turns += of_range;
    size_t withdrawn = 0;
    for (size_t i = 0; i < kRequests; ++i) {
      if (requests_[i].state() == State::kWithdrawn) {
        ++withdrawn;
      } else {
        EXPECT_EQ(requests_[i].state(), State::kDone);
        EXPECT_EQ(had_[i], kTurns);
      }
      turns -= had_[i];
    }
    EXPECT_EQ(turns, 0u);
    EXPECT_EQ(withdrawn, withdrawn_.load());
    EXPECT_EQ(released(&waiters_), Requests{});
  }

 private:
  bool take(size_t* index) {
    absl::MutexLock lock(&mutex_);
    if (ready_.empty()) return false;
    *index = ready_.front();
    ready_.pop_front();
    return true;
  }
  void put(size_t index) {
    absl::MutexLock lock(&mutex_);
    ready_.push_back(index);
  }

  // The caller has the request until it is parked, put back or over.
  void attempt(size_t index, std::mt19937_64* random) {
    const size_t range = index % kRanges;
    for (;;) {
      const uint64_t seen = waiters_.releases();
      if (!held_[range].exchange(true)) break;
      if (waiters_.park(requests_[index].get(), seen)) return;
    }
    ++turns_[range];
    ++had_[index];
    if ((*random)() % 8 == 0) std::this_thread::yield();
    const bool last = had_[index] == kTurns;
    if (last) requests_[index]->state.store(State::kDone);
    held_[range].store(false);
    for (AioRequest* each : released(&waiters_)) put(index_of(each));
    if (last) {
      over_.fetch_add(1);
    } else {
      put(index);
    }
  }
  size_t index_of(const AioRequest* request) const {
    size_t index = 0;
    while (requests_[index].get() != request) ++index;
    return index;
  }

  const uint64_t seed_;
  std::array<RunningRequest, kRequests> requests_;
  RangeWaiters waiters_;
  std::array<std::atomic<bool>, kRanges> held_{};
  // Whoever holds the range may change them: ThreadSanitizer sees who else did.
  std::array<uint64_t, kRanges> turns_{};
  // Whoever has the request may change it.
  std::array<int, kRequests> had_{};
  std::atomic<size_t> over_{0};
  std::atomic<size_t> withdrawn_{0};
  absl::Mutex mutex_;
  std::deque<size_t> ready_ ABSL_GUARDED_BY(mutex_);
};

TEST(RangeWaiters, NobodyIsOverlookedUnderManyThreads) {
  const uint64_t seed = testing::test_seed();
  for (uint64_t round = 0; round < 5; ++round) {
    Device device(seed + round * 100);
    std::vector<std::thread> threads;
    for (size_t worker = 0; worker < Device::kWorkers; ++worker) {
      threads.emplace_back([&device, worker] { device.work(worker); });
    }
    threads.emplace_back([&device] { device.cancel(); });
    for (std::thread& thread : threads) thread.join();
    device.expect_all_over();
  }
}

// Spins, so that two threads meet within a few instructions.
void wait_for(const std::atomic<uint64_t>& number, uint64_t value) {
  for (int spins = 1; number.load() < value; ++spins) {
    if (spins % 1000 == 0) std::this_thread::yield();
  }
}

// One release, while the waiter parks: no other one would wake it.
TEST(RangeWaiters, AReleaseDuringParkIsNotMissed) {
  constexpr uint64_t kRounds = 60000;
  RangeWaiters waiters;
  RunningRequest request;
  std::atomic<uint64_t> begun{0};
  std::atomic<uint64_t> over{0};
  uint64_t found = 0;
  std::mt19937_64 random(testing::test_seed());
  std::thread releaser([&] {
    for (uint64_t round = 1; round <= kRounds; ++round) {
      wait_for(begun, round);
      // Anywhere in the midst of park().
      for (uint64_t delay = random() % 500; delay > 0; --delay) begun.load();
      found += released(&waiters).size();
      over.store(round);
    }
  });
  uint64_t parked = 0;
  for (uint64_t round = 1; round <= kRounds; ++round) {
    const uint64_t seen = waiters.releases();
    begun.store(round);
    if (waiters.park(request.get(), seen)) ++parked;
    wait_for(over, round);
    if (request.state() != State::kRunning) {
      ADD_FAILURE() << "overlooked";
      released(&waiters);
    }
  }
  releaser.join();
  EXPECT_EQ(found, parked);
}

}  // namespace
}  // namespace spindle

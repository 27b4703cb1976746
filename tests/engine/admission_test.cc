#include "engine/admission.h"

#include <array>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/engine/owned_request.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using State = AioRequest::State;
using Requests = std::vector<AioRequest*>;

Requests startable(Admission* admission) {
  RequestList list;
  admission->take_startable(&list);
  Requests requests;
  while (AioRequest* request = list.pop_front()) {
    EXPECT_EQ(request->state.load(), State::kRunning);
    requests.push_back(request);
  }
  return requests;
}

template <size_t kCount>
Requests all(const std::array<OwnedRequest, kCount>& requests,
             size_t from = 0) {
  Requests result;
  for (size_t i = from; i < kCount; ++i) result.push_back(requests[i].get());
  return result;
}

TEST(Admission, NothingRestrainsAtFirst) {
  Admission admission(0);
  EXPECT_TRUE(admission.unrestrained());
  OwnedRequest request;
  EXPECT_TRUE(admission.admit_or_queue(request.get()));
  EXPECT_FALSE(request->has_slot);
  EXPECT_EQ(request.state(), State::kSubmitting);
  EXPECT_EQ(startable(&admission), Requests{});
}

// ---- Plug -------------------------------------------------------------------

TEST(Plug, HoldsStartsBackAndKeepsTheirOrder) {
  Admission admission(0);
  std::array<OwnedRequest, 3> requests;
  admission.plug();
  EXPECT_FALSE(admission.unrestrained());
  for (const OwnedRequest& request : requests) {
    EXPECT_FALSE(admission.admit_or_queue(request.get()));
    EXPECT_EQ(request.state(), State::kWaiting);
  }
  EXPECT_EQ(startable(&admission), Requests{});
  admission.unplug();
  // Who comes now waits behind them.
  EXPECT_FALSE(admission.unrestrained());
  OwnedRequest late;
  EXPECT_FALSE(admission.admit_or_queue(late.get()));
  Requests expected = all(requests);
  expected.push_back(late.get());
  EXPECT_EQ(startable(&admission), expected);
  EXPECT_TRUE(admission.unrestrained());
}

TEST(Plug, Nests) {
  Admission admission(0);
  OwnedRequest request;
  admission.plug();
  admission.plug();
  EXPECT_FALSE(admission.admit_or_queue(request.get()));
  admission.unplug();
  EXPECT_FALSE(admission.unrestrained());
  EXPECT_EQ(startable(&admission), Requests{});
  admission.unplug();
  EXPECT_EQ(startable(&admission), Requests{request.get()});
}

TEST(Plug, OfNothingRestrainsNobodyAfterwards) {
  Admission admission(0);
  admission.plug();
  admission.unplug();
  EXPECT_TRUE(admission.unrestrained());
}

// What runs in place occupies no worker; only a plug lets it pass.
TEST(Plug, LetsPassWhatNeedsNoWorker) {
  Admission admission(0);
  EXPECT_TRUE(admission.unrestrained_in_place());
  OwnedRequest request;
  admission.plug();
  EXPECT_TRUE(admission.unrestrained_in_place());
  ASSERT_FALSE(admission.admit_or_queue(request.get()));
  EXPECT_TRUE(admission.unrestrained_in_place());
  admission.hold(1);
  EXPECT_FALSE(admission.unrestrained_in_place());
  admission.release();
  EXPECT_TRUE(admission.unrestrained_in_place());
  admission.set_limit(1);
  EXPECT_FALSE(admission.unrestrained_in_place());
  admission.set_limit(0);
  admission.unplug();
  // No longer for the plug: it is its turn.
  EXPECT_FALSE(admission.unrestrained_in_place());
  startable(&admission);
  EXPECT_TRUE(admission.unrestrained_in_place());
}

// ---- Drain ------------------------------------------------------------------

TEST(Drain, StartsWhatIsPlugged) {
  Admission admission(0);
  OwnedRequest before;
  OwnedRequest meanwhile;
  OwnedRequest after;
  admission.plug();
  ASSERT_FALSE(admission.admit_or_queue(before.get()));
  admission.begin_drain();
  admission.begin_drain();
  EXPECT_EQ(startable(&admission), Requests{before.get()});
  EXPECT_TRUE(admission.admit_or_queue(meanwhile.get()));
  admission.end_drain();
  OwnedRequest still;
  EXPECT_TRUE(admission.admit_or_queue(still.get())) << "one still drains";
  admission.end_drain();
  EXPECT_FALSE(admission.admit_or_queue(after.get())) << "the plug is gone";
  EXPECT_EQ(startable(&admission), Requests{});
  admission.unplug();
  EXPECT_EQ(startable(&admission), Requests{after.get()});
}

TEST(Drain, KeepsToTheLimit) {
  Admission admission(1);
  std::array<OwnedRequest, 2> requests;
  admission.plug();
  for (const OwnedRequest& request : requests) {
    ASSERT_FALSE(admission.admit_or_queue(request.get()));
  }
  admission.begin_drain();
  EXPECT_EQ(startable(&admission), Requests{requests[0].get()});
  EXPECT_EQ(startable(&admission), Requests{});
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{requests[1].get()});
  admission.give_back_slot();
  admission.end_drain();
  admission.unplug();
}

// ---- Limit ------------------------------------------------------------------

TEST(Limit, LetsSoManyStart) {
  Admission admission(2);
  EXPECT_FALSE(admission.unrestrained());
  std::array<OwnedRequest, 5> requests;
  EXPECT_TRUE(admission.admit_or_queue(requests[0].get()));
  EXPECT_TRUE(admission.admit_or_queue(requests[1].get()));
  EXPECT_TRUE(requests[0]->has_slot);
  for (size_t i = 2; i < 5; ++i) {
    EXPECT_FALSE(admission.admit_or_queue(requests[i].get()));
    EXPECT_FALSE(requests[i]->has_slot);
  }
  EXPECT_EQ(startable(&admission), Requests{});
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{requests[2].get()});
  EXPECT_TRUE(requests[2]->has_slot);
  admission.give_back_slot();
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), all(requests, 3));
}

// A slot that is free is theirs who wait for it.
TEST(Limit, NobodyOvertakesWhoWaits) {
  Admission admission(1);
  std::array<OwnedRequest, 3> requests;
  ASSERT_TRUE(admission.admit_or_queue(requests[0].get()));
  ASSERT_FALSE(admission.admit_or_queue(requests[1].get()));
  admission.give_back_slot();
  EXPECT_FALSE(admission.admit_or_queue(requests[2].get()));
  EXPECT_EQ(startable(&admission), Requests{requests[1].get()});
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{requests[2].get()});
}

TEST(Limit, MayBeChangedWhileRequestsAreInFlight) {
  Admission admission(1);
  std::array<OwnedRequest, 6> requests;
  ASSERT_TRUE(admission.admit_or_queue(requests[0].get()));
  for (size_t i = 1; i < requests.size(); ++i) {
    ASSERT_FALSE(admission.admit_or_queue(requests[i].get()));
  }
  admission.set_limit(3);
  EXPECT_EQ(startable(&admission),
            (Requests{requests[1].get(), requests[2].get()}));
  // Less than are in flight: two must end before one may start.
  admission.set_limit(2);
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{});
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{requests[3].get()});
  admission.set_limit(0);
  EXPECT_FALSE(admission.unrestrained()) << "some still wait";
  EXPECT_EQ(startable(&admission), all(requests, 4));
  EXPECT_FALSE(requests[5]->has_slot);
  EXPECT_TRUE(admission.unrestrained());
  // Slots that were taken under a limit come back without one.
  admission.give_back_slot();
  admission.give_back_slot();
  admission.set_limit(1);
  OwnedRequest last;
  EXPECT_TRUE(admission.admit_or_queue(last.get()));
}

// ---- Hold -------------------------------------------------------------------

TEST(Hold, KeepsOneGenerationAndLetsTheOtherGo) {
  Admission admission(0);
  OwnedRequest held(1);
  OwnedRequest other(0);
  EXPECT_FALSE(admission.holds(1));
  admission.hold(1);
  EXPECT_FALSE(admission.unrestrained());
  EXPECT_TRUE(admission.holds(1));
  EXPECT_FALSE(admission.holds(0));
  EXPECT_FALSE(admission.admit_or_queue(held.get()));
  EXPECT_EQ(held.state(), State::kWaiting);
  EXPECT_TRUE(admission.admit_or_queue(other.get()));
  EXPECT_EQ(startable(&admission), Requests{});
  admission.release();
  EXPECT_FALSE(admission.holds(1));
  EXPECT_FALSE(admission.unrestrained());
  EXPECT_EQ(startable(&admission), Requests{held.get()});
  EXPECT_TRUE(admission.unrestrained());
}

// What waits already is what the hold waits for.
TEST(Hold, LetsStartWhatCameBefore) {
  Admission admission(1);
  OwnedRequest runs(0);
  OwnedRequest waits(0);
  std::array<OwnedRequest, 2> held = {OwnedRequest(1), OwnedRequest(1)};
  ASSERT_TRUE(admission.admit_or_queue(runs.get()));
  ASSERT_FALSE(admission.admit_or_queue(waits.get()));
  admission.hold(1);
  for (const OwnedRequest& request : held) {
    ASSERT_FALSE(admission.admit_or_queue(request.get()));
  }
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{waits.get()});
  admission.release();
  EXPECT_EQ(startable(&admission), Requests{}) << "the slot is taken";
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{held[0].get()});
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{held[1].get()});
}

TEST(Hold, WaitForReleaseReturnsWhenNothingIsHeld) {
  Admission admission(0);
  admission.wait_for_release();
  admission.hold(0);
  std::atomic<bool> released{false};
  std::thread waiter([&] {
    admission.wait_for_release();
    EXPECT_TRUE(released);
  });
  absl::SleepFor(absl::Milliseconds(20));
  released = true;
  admission.release();
  waiter.join();
}

// ---- Forget -----------------------------------------------------------------

TEST(Forget, TakesOutWhatWaitsOrIsHeld) {
  Admission admission(0);
  std::array<OwnedRequest, 3> plugged;
  std::array<OwnedRequest, 2> held = {OwnedRequest(1), OwnedRequest(1)};
  admission.plug();
  admission.hold(1);
  for (const OwnedRequest& request : plugged) {
    ASSERT_FALSE(admission.admit_or_queue(request.get()));
  }
  for (const OwnedRequest& request : held) {
    ASSERT_FALSE(admission.admit_or_queue(request.get()));
  }
  ASSERT_TRUE(plugged[1].claim());
  admission.forget(plugged[1].get());
  ASSERT_TRUE(held[0].claim());
  admission.forget(held[0].get());
  EXPECT_EQ(held[0].state(), State::kCancelling);
  // They are in no list any more, so that another one may take them.
  RequestList list;
  list.push_back(plugged[1].get());
  list.push_back(held[0].get());
  list.remove(plugged[1].get());
  list.remove(held[0].get());
  admission.release();
  admission.unplug();
  EXPECT_EQ(startable(&admission),
            (Requests{plugged[0].get(), plugged[2].get(), held[1].get()}));
}

TEST(Forget, OfTheLastOneLeavesNothingRestrained) {
  Admission admission(0);
  OwnedRequest request;
  admission.plug();
  ASSERT_FALSE(admission.admit_or_queue(request.get()));
  admission.unplug();
  ASSERT_TRUE(request.claim());
  EXPECT_FALSE(admission.unrestrained());
  admission.forget(request.get());
  EXPECT_TRUE(admission.unrestrained());
  admission.forget(request.get());
}

// Its canceller comes a moment later; it takes no slot.
TEST(Forget, ComesTooLateForWhatItsTurnHasPassed) {
  Admission admission(1);
  std::array<OwnedRequest, 3> requests;
  ASSERT_TRUE(admission.admit_or_queue(requests[0].get()));
  ASSERT_FALSE(admission.admit_or_queue(requests[1].get()));
  ASSERT_FALSE(admission.admit_or_queue(requests[2].get()));
  ASSERT_TRUE(requests[1].claim());
  admission.give_back_slot();
  EXPECT_EQ(startable(&admission), Requests{requests[2].get()});
  EXPECT_FALSE(requests[1]->has_slot);
  EXPECT_EQ(requests[1].state(), State::kCancelling);
  admission.forget(requests[1].get());
}

// ---- Threads ----------------------------------------------------------------

// Submitters, whose requests end at once, among plugs, drains, limits, holds
// and cancellers.  A request that is overlooked leaves its submitter waiting.
class Traffic {
 public:
  static constexpr int kEach = 1500;
  static constexpr size_t kMostInFlight = 3;

  void submit(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (int i = 0; i < kEach; ++i) {
      OwnedRequest request(static_cast<Generation>(random() % 2));
      if (admission_.unrestrained() ||
          admission_.admit_or_queue(request.get())) {
        run(request.get());
      } else if (random() % 8 == 0 && request.claim()) {
        admission_.forget(request.get());
        start_waiting();
        continue;
      }
      while (request.state() != State::kDone) start_waiting();
    }
    ++submitters_done_;
  }

  void disturb(uint64_t seed, int submitters) {
    std::mt19937_64 random(seed);
    while (submitters_done_.load() < submitters) {
      switch (random() % 4) {
        case 0:
          admission_.plug();
          pause(&random);
          admission_.unplug();
          break;
        case 1:
          admission_.begin_drain();
          pause(&random);
          admission_.end_drain();
          break;
        case 2:
          admission_.hold(static_cast<Generation>(random() % 2));
          pause(&random);
          admission_.release();
          break;
        default:
          admission_.set_limit(random() % (kMostInFlight + 1));
          break;
      }
      start_waiting();
    }
  }

  void expect_quiet() {
    admission_.set_limit(0);
    EXPECT_TRUE(admission_.unrestrained());
    EXPECT_EQ(startable(&admission_), Requests{});
    // Every slot came back.
    admission_.set_limit(1);
    OwnedRequest request;
    EXPECT_TRUE(admission_.admit_or_queue(request.get()));
    EXPECT_LE(most_slots_.load(), kMostInFlight);
  }

 private:
  static void pause(std::mt19937_64* random) {
    absl::SleepFor(absl::Microseconds((*random)() % 100));
  }
  void run(AioRequest* request) {
    const bool has_slot = request->has_slot;
    if (has_slot) {
      const size_t slots = slots_.fetch_add(1) + 1;
      if (slots > most_slots_.load()) most_slots_.store(slots);
      std::this_thread::yield();
      slots_.fetch_sub(1);
      request->has_slot = false;
      admission_.give_back_slot();
    }
    request->state.store(State::kDone);
    if (has_slot) start_waiting();
  }
  void start_waiting() {
    for (AioRequest* request : startable(&admission_)) run(request);
    std::this_thread::yield();
  }

  Admission admission_{0};
  std::atomic<int> submitters_done_{0};
  std::atomic<size_t> slots_{0};
  std::atomic<size_t> most_slots_{0};
};

TEST(Threads, EveryRequestStartsOrIsWithdrawn) {
  const uint64_t seed = testing::test_seed();
  constexpr int kSubmitters = 4;
  Traffic traffic;
  std::vector<std::thread> threads;
  for (int i = 0; i < kSubmitters; ++i) {
    threads.emplace_back([&, i] { traffic.submit(seed + i); });
  }
  threads.emplace_back(
      [&] { traffic.disturb(seed + kSubmitters, kSubmitters); });
  for (std::thread& thread : threads) thread.join();
  traffic.expect_quiet();
}

}  // namespace
}  // namespace spindle

#include "engine/aio_handle.h"

#include <atomic>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "engine/aio.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using CancelResult = AioHandle::CancelResult;
using State = AioRequest::State;

// A device that only remembers what it is asked for.
class Owner : public RequestOwner {
 public:
  virtual ~Owner() = default;
  void run_request(AioRequest*) override { ADD_FAILURE() << "run"; }
  void abandon_request(AioRequest*) override { ADD_FAILURE() << "abandoned"; }
  void start_throttled(AioRequest*) override { ADD_FAILURE() << "throttled"; }
  void cancel_request(AioRequest* request, bool was_queued) override {
    EXPECT_EQ(request->state.load(), State::kCancelling);
    ++cancelled;
    last = request;
    last_was_queued = was_queued;
  }

  std::atomic<int> cancelled{0};
  AioRequest* last = nullptr;
  bool last_was_queued = false;
};

// A request as the engine has it, in a state.
class Request {
 public:
  Request(Owner* owner, State state) : request_(AioRequest::make()) {
    request_->owner = owner;
    request_->state.store(state);
    handle_.emplace(request_);
  }
  ~Request() { drop_engines_reference(); }

  AioRequest* get() const { return request_; }
  AioRequest* operator->() const { return request_; }
  AioHandle take_handle() {
    AioHandle handle = *std::move(handle_);
    handle_.reset();
    return handle;
  }
  void drop_engines_reference() {
    if (request_ != nullptr) request_->drop_reference();
    request_ = nullptr;
  }

 private:
  AioRequest* request_;
  std::optional<AioHandle> handle_;
};

TEST(AioHandle, OfNothingIsDone) {
  AioHandle handle;
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(handle.cancel(), CancelResult::kDone);
  AioHandle copy = handle;
  AioHandle moved = std::move(handle);
  copy = moved;
  EXPECT_TRUE(copy.done());
}

struct Outcome {
  State state;
  CancelResult result;
  bool asks_owner;
  bool was_queued;
  bool done;
};

constexpr Outcome kOutcomes[] = {
    {State::kSubmitting, CancelResult::kRunning, false, false, false},
    {State::kWaiting, CancelResult::kWithdrawn, true, false, false},
    {State::kQueued, CancelResult::kWithdrawn, true, true, false},
    {State::kRunning, CancelResult::kRunning, false, false, false},
    {State::kCancelling, CancelResult::kWithdrawn, false, false, false},
    {State::kArrived, CancelResult::kWithdrawn, false, false, false},
    {State::kCancelled, CancelResult::kWithdrawn, false, false, false},
    {State::kWithdrawn, CancelResult::kWithdrawn, false, false, false},
    {State::kDone, CancelResult::kDone, false, false, true},
};

TEST(AioHandle, CancelDoesWhatTheStateAllows) {
  for (const Outcome& outcome : kOutcomes) {
    SCOPED_TRACE(static_cast<int>(outcome.state));
    Owner owner;
    Request request(&owner, outcome.state);
    AioHandle handle = request.take_handle();
    EXPECT_EQ(handle.done(), outcome.done);
    EXPECT_EQ(handle.cancel(), outcome.result);
    EXPECT_EQ(owner.cancelled.load(), outcome.asks_owner ? 1 : 0);
    if (outcome.asks_owner) {
      EXPECT_EQ(owner.last, request.get());
      EXPECT_EQ(owner.last_was_queued, outcome.was_queued);
    } else {
      EXPECT_EQ(request->state.load(), outcome.state) << "touched";
    }
  }
}

// Its completion is still to come: that is what done() tells.
TEST(AioHandle, OfAWithdrawnRequestIsDoneWhenItHasCompleted) {
  Owner owner;
  Request request(&owner, State::kQueued);
  AioHandle handle = request.take_handle();
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  EXPECT_FALSE(handle.done());
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  EXPECT_EQ(owner.cancelled.load(), 1) << "asked twice";
  request->state.store(State::kDone);
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(handle.cancel(), CancelResult::kDone);
}

TEST(AioHandle, CopiesShareTheRequest) {
  Owner owner;
  Request request(&owner, State::kRunning);
  AioHandle first = request.take_handle();
  AioHandle second = first;
  AioHandle third;
  third = second;
  third = *&third;
  first = AioHandle();
  EXPECT_TRUE(first.done());
  EXPECT_FALSE(second.done());
  AioHandle fourth = std::move(second);
  second = std::move(third);
  request->state.store(State::kDone);
  EXPECT_TRUE(second.done());
  EXPECT_TRUE(fourth.done());
}

// A request is used again when nobody refers to it, and not sooner.  Its
// callback's belongings tell: they go when it does.
TEST(AioHandle, LastOneLetsTheRequestGo) {
  Owner owner;
  auto belongings = std::make_shared<int>(0);
  Request request(&owner, State::kDone);
  request->callback = [belongings](const absl::Status&) {};
  EXPECT_EQ(belongings.use_count(), 2);
  std::vector<AioHandle> handles;
  handles.push_back(request.take_handle());
  for (int i = 0; i < 5; ++i) handles.push_back(handles[i]);
  AioHandle replaced = handles[0];
  replaced = AioHandle();
  AioHandle moved = std::move(handles[1]);
  moved = std::move(handles[2]);
  request.drop_engines_reference();
  EXPECT_EQ(belongings.use_count(), 2);
  handles.clear();
  EXPECT_EQ(belongings.use_count(), 2) << "one handle is left";
  moved = AioHandle();
  EXPECT_EQ(belongings.use_count(), 1) << "leaked";
}

TEST(AioHandle, OutlivesTheDevice) {
  auto owner = std::make_unique<Owner>();
  std::optional<Request> request;
  request.emplace(owner.get(), State::kRunning);
  AioHandle handle = request->take_handle();
  (*request)->state.store(State::kDone);
  request.reset();
  owner.reset();
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(handle.cancel(), CancelResult::kDone);
  AioHandle copy = handle;
  EXPECT_EQ(copy.cancel(), CancelResult::kDone);
}

// Several cancellers, and a worker that takes the request at the same time:
// exactly one of them gets it.
TEST(AioHandle, OneCancellerOrTheWorkerWins) {
  const uint64_t seed = testing::test_seed();
  constexpr int kCancellers = 3;
  constexpr int kRounds = 2000;
  std::mt19937_64 random(seed);
  Owner owner;
  int started = 0;
  for (int round = 0; round < kRounds; ++round) {
    Request request(&owner,
                    random() % 2 == 0 ? State::kQueued : State::kWaiting);
    const State before = request->state.load();
    const AioHandle handle = request.take_handle();
    std::atomic<int> ready{0};
    std::atomic<int> withdrawn{0};
    std::atomic<int> running{0};
    const int cancelled_before = owner.cancelled.load();
    const auto meet = [&ready] {
      ready.fetch_add(1);
      while (ready.load() <= kCancellers) std::this_thread::yield();
    };
    std::vector<std::thread> cancellers;
    for (int i = 0; i < kCancellers; ++i) {
      cancellers.emplace_back([&, mine = handle]() mutable {
        meet();
        (mine.cancel() == CancelResult::kWithdrawn ? withdrawn : running)
            .fetch_add(1);
      });
    }
    meet();
    State expected = before;
    const bool mine =
        request->state.compare_exchange_strong(expected, State::kRunning);
    for (std::thread& canceller : cancellers) canceller.join();
    started += mine ? 1 : 0;
    ASSERT_EQ(running.load(), mine ? kCancellers : 0);
    ASSERT_EQ(withdrawn.load(), mine ? 0 : kCancellers);
    ASSERT_EQ(owner.cancelled.load() - cancelled_before, mine ? 0 : 1);
  }
  EXPECT_EQ(started + owner.cancelled.load(), kRounds);
}

}  // namespace
}  // namespace spindle

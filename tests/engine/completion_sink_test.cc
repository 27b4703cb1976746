#include "engine/completion_sink.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <functional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Numbers = std::vector<uint64_t>;

bool readable(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&entry, 1, 0) == 1;
}

// A worker's queue, as far as a sink sees it.
class BatchQueue : public WorkQueue {
 public:
  explicit BatchQueue(bool promises) : promises_(promises) {}

  bool submit(WorkItem*) override { return false; }
  size_t submit_batch(absl::Span<WorkItem* const>) override { return 0; }
  bool withdraw(WorkItem*) override { return false; }
  bool notify_after_batch(
      const std::shared_ptr<BatchNotification>& notification) override {
    ++asked;
    if (promises_) promised = notification;
    return promises_;
  }
  WorkQueueCounters counters() const override { return {}; }
  std::shared_ptr<WorkQueue> make_turn_queue() override { return nullptr; }

  int asked = 0;
  std::shared_ptr<BatchNotification> promised;

 private:
  const bool promises_;
};

// An executor without threads that has one thing to do: a function.
class Helper : public Executor {
 public:
  explicit Helper(std::function<bool()> run) : run_(std::move(run)) {}

  std::shared_ptr<WorkQueue> make_queue(const WorkQueueOptions&) override {
    return nullptr;
  }
  size_t width() const override { return 0; }
  bool run_one() override { return run_(); }
  bool on_worker_thread() const override { return false; }
  void stop(StopMode) override {}

 private:
  const std::function<bool()> run_;
};

struct Sink {
  // Of a request that nobody else refers to.
  void push(uint64_t number, WorkQueue* batch_queue = nullptr,
            AioCallback callback = nullptr) {
    AioRequest* const request = AioRequest::make();
    request->drop_reference();
    request->user_data = number;
    request->callback = std::move(callback);
    request->state.store(AioRequest::State::kDone);
    AioRequest* const one[] = {request};
    sink->push(one, batch_queue, sink);
  }
  void push_callback(uint64_t number) {
    push(number, nullptr, [](const absl::Status&) {});
  }
  // What it took; callbacks are not run.
  Numbers take(size_t max_plain = SIZE_MAX, Numbers* callbacks = nullptr) {
    RequestList plain;
    RequestList with_callback;
    sink->take(max_plain, &plain, &with_callback);
    const Numbers called = numbers_of(&with_callback);
    if (callbacks != nullptr) {
      *callbacks = called;
    } else {
      EXPECT_EQ(called, Numbers{});
    }
    return numbers_of(&plain);
  }

  CompletionSink* operator->() const { return sink.get(); }

  std::shared_ptr<CompletionSink> sink = *CompletionSink::create();

 private:
  static Numbers numbers_of(RequestList* list) {
    Numbers numbers;
    while (AioRequest* request = list->pop_front()) {
      numbers.push_back(request->user_data);
      request->drop_reference();
    }
    return numbers;
  }
};

// ---- What it holds ----------------------------------------------------------

TEST(CompletionSink, CannotBeMadeWithoutADescriptor) {
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status = CompletionSink::create().status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(CompletionSink::create().ok());
}

TEST(CompletionSink, GivesOldestFirstAndNoMoreThanAskedFor) {
  Sink sink;
  EXPECT_EQ(sink.take(), Numbers{});
  for (uint64_t i = 1; i <= 5; ++i) sink.push(i);
  EXPECT_EQ(sink.take(0), Numbers{});
  EXPECT_EQ(sink.take(2), (Numbers{1, 2}));
  sink.push(6);
  EXPECT_EQ(sink.take(3), (Numbers{3, 4, 5}));
  sink.push(7);
  EXPECT_EQ(sink.take(), (Numbers{6, 7}));
  EXPECT_EQ(sink.take(), Numbers{});
}

TEST(CompletionSink, GivesAllCallbacksWhateverWasAskedFor) {
  Sink sink;
  sink.push(1);
  sink.push_callback(2);
  sink.push(3);
  sink.push_callback(4);
  Numbers callbacks;
  EXPECT_EQ(sink.take(1, &callbacks), Numbers{1});
  EXPECT_EQ(callbacks, (Numbers{2, 4}));
  EXPECT_EQ(sink.take(1, &callbacks), Numbers{3});
  EXPECT_EQ(callbacks, Numbers{});
}

TEST(CompletionSink, AddsToTheEndOfTheLists) {
  Sink sink;
  sink.push(1);
  sink.push(2);
  RequestList plain;
  RequestList callbacks;
  sink->take(1, &plain, &callbacks);
  sink->take(1, &plain, &callbacks);
  for (uint64_t expected : {1, 2}) {
    AioRequest* const request = plain.pop_front();
    ASSERT_NE(request, nullptr);
    EXPECT_EQ(request->user_data, expected);
    request->drop_reference();
  }
}

TEST(CompletionSink, KnowsWhetherThereIsSomething) {
  Sink sink;
  EXPECT_FALSE(sink->may_have_something());
  EXPECT_FALSE(sink->should_take());
  sink.push(1);
  sink.push(2);
  EXPECT_TRUE(sink->may_have_something());
  EXPECT_TRUE(sink->should_take());
  sink.take(1);
  EXPECT_TRUE(sink->may_have_something());
  sink.take(1);
  EXPECT_FALSE(sink->may_have_something());
  EXPECT_FALSE(sink->should_take());
}

// What a callback owns tells when its request goes.
TEST(CompletionSink, LetsGoOfWhatNobodyTook) {
  const auto belongings = std::make_shared<int>(0);
  {
    Sink sink;
    for (uint64_t i = 0; i < 3; ++i) {
      sink.push(i, nullptr, [belongings](const absl::Status&) {
        ADD_FAILURE() << "called";
      });
    }
    sink.push(3);
    EXPECT_EQ(belongings.use_count(), 4);
  }
  EXPECT_EQ(belongings.use_count(), 1);
}

// ---- The descriptor ---------------------------------------------------------

TEST(EventFd, IsReadableWhileThereIsSomething) {
  Sink sink;
  const int fd = sink->event_fd();
  EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(sink->event_fd(), fd);
  EXPECT_FALSE(readable(fd));
  for (int round = 0; round < 3; ++round) {
    sink.push(1);
    EXPECT_TRUE(readable(fd));
    sink.push(2);
    sink.take(1);
    EXPECT_TRUE(readable(fd)) << "one is left";
    sink.take();
    EXPECT_FALSE(readable(fd));
  }
  sink.push_callback(3);
  EXPECT_TRUE(readable(fd));
  Numbers callbacks;
  sink.take(0, &callbacks);
  EXPECT_FALSE(readable(fd));
}

TEST(EventFd, TellsOfWhatCameBeforeItWasAskedFor) {
  Sink pushed;
  pushed.push(1);
  EXPECT_TRUE(readable(pushed->event_fd()));
  Sink taken_in_part;
  taken_in_part.push(1);
  taken_in_part.push(2);
  taken_in_part.take(1);
  EXPECT_TRUE(readable(taken_in_part->event_fd()));
  Sink taken;
  taken.push(1);
  taken.take();
  EXPECT_FALSE(readable(taken->event_fd()));
}

TEST(EventFd, IsSignalledOnceForABurst) {
  Sink sink;
  const int fd = sink->event_fd();
  for (uint64_t i = 0; i < 10; ++i) sink.push(i);
  eventfd_t count = 0;
  ASSERT_EQ(eventfd_read(fd, &count), 0);
  EXPECT_EQ(count, 1u);
  // Who has read from it need not mind: it is armed again.
  EXPECT_EQ(sink.take().size(), 10u);
  EXPECT_FALSE(readable(fd));
  sink.push(10);
  EXPECT_TRUE(readable(fd));
}

TEST(Batches, AreAskedOnlyWhileSomebodyListens) {
  Sink sink;
  BatchQueue queue(/*promises=*/true);
  sink.push(1, &queue);
  EXPECT_EQ(queue.asked, 0);
  const int fd = sink->event_fd();
  EXPECT_TRUE(readable(fd));
  sink.push(2, &queue);
  EXPECT_EQ(queue.asked, 0) << "it is readable already";
  sink.take();
  sink.push(3, &queue);
  EXPECT_EQ(queue.asked, 1);
}

TEST(Batches, SignalWhenTheyEnd) {
  Sink sink;
  const int fd = sink->event_fd();
  BatchQueue queue(/*promises=*/true);
  sink.push(1, &queue);
  sink.push(2, &queue);
  ASSERT_EQ(queue.promised, sink.sink);
  EXPECT_FALSE(readable(fd));
  EXPECT_TRUE(sink->may_have_something());
  queue.promised->batch_ended();
  EXPECT_TRUE(readable(fd));
  EXPECT_EQ(sink.take(), (Numbers{1, 2}));
  // A batch that ends when all has been taken is no news.
  queue.promised->batch_ended();
  sink.take();
  EXPECT_FALSE(readable(fd));
}

TEST(Batches, SignalAtOnceWhereNobodyPromisesTheEnd) {
  Sink sink;
  const int fd = sink->event_fd();
  BatchQueue queue(/*promises=*/false);
  sink.push(1, &queue);
  EXPECT_EQ(queue.asked, 1);
  EXPECT_TRUE(readable(fd));
}

// ---- Sleep ------------------------------------------------------------------

TEST(Sleep, EndsAtTheDeadline) {
  Sink sink;
  sink->sleep(absl::InfinitePast());
  sink->sleep(absl::Now());
  const absl::Time deadline = absl::Now() + absl::Milliseconds(20);
  sink->sleep(deadline);
  EXPECT_GE(absl::Now(), deadline);
  EXPECT_FALSE(sink->may_have_something());
}

TEST(Sleep, DoesNotBeginWhereThereIsSomething) {
  Sink sink;
  sink.push(1);
  sink.push(2);
  sink->sleep(absl::InfiniteFuture());
  sink.take(1);
  sink->sleep(absl::InfiniteFuture());
}

TEST(Sleep, EndsForAllWhenSomethingIsPushed) {
  Sink sink;
  std::vector<std::thread> sleepers;
  for (absl::Time deadline : {absl::InfiniteFuture(), absl::InfiniteFuture(),
                              absl::Now() + absl::Hours(1)}) {
    sleepers.emplace_back([&sink, deadline] {
      sink->sleep(deadline);
      EXPECT_TRUE(sink->may_have_something());
    });
  }
  absl::SleepFor(absl::Milliseconds(20));
  sink.push(1);
  for (std::thread& sleeper : sleepers) sleeper.join();
  EXPECT_EQ(sink.take(), Numbers{1});
}

TEST(Sleep, EndsAtTheLatestWhenTheBatchDoes) {
  Sink sink;
  BatchQueue queue(/*promises=*/true);
  std::thread sleeper([&sink] { sink->sleep(absl::InfiniteFuture()); });
  absl::SleepFor(absl::Milliseconds(20));
  sink.push(1, &queue);
  sink->batch_ended();
  sleeper.join();
}

// ---- Helpers ----------------------------------------------------------------

TEST(Helpers, RunOneItemAtATimeOfWhoeverHasOne) {
  Sink sink;
  EXPECT_FALSE(sink->has_helpers());
  EXPECT_FALSE(sink->help());
  int first_asked = 0;
  int second_has = 2;
  Helper first([&] {
    ++first_asked;
    return false;
  });
  Helper second([&] { return second_has > 0 && second_has-- > 0; });
  sink->add_helper(&first);
  sink->add_helper(&second);
  EXPECT_TRUE(sink->has_helpers());
  EXPECT_TRUE(sink->help());
  EXPECT_EQ(second_has, 1);
  EXPECT_TRUE(sink->help());
  EXPECT_FALSE(sink->help());
  EXPECT_EQ(first_asked, 3);
  sink->remove_helper(&second);
  second_has = 1;
  EXPECT_FALSE(sink->help());
  sink->remove_helper(&first);
  EXPECT_FALSE(sink->has_helpers());
}

// Several devices may share an executor.
TEST(Helpers, StayUntilTheirLastUserHasGone) {
  Sink sink;
  int asked = 0;
  Helper helper([&] { return ++asked > 0; });
  sink->add_helper(&helper);
  sink->add_helper(&helper);
  EXPECT_TRUE(sink->help());
  EXPECT_EQ(asked, 1) << "asked once for each user";
  sink->remove_helper(&helper);
  EXPECT_TRUE(sink->has_helpers());
  EXPECT_TRUE(sink->help());
  sink->remove_helper(&helper);
  EXPECT_FALSE(sink->help());
  EXPECT_EQ(asked, 2);
}

TEST(Helpers, RemovalWaitsForWhoeverIsInside) {
  Sink sink;
  absl::Notification inside;
  absl::Notification go_on;
  std::atomic<bool> left{false};
  Helper helper([&] {
    inside.Notify();
    go_on.WaitForNotification();
    left = true;
    return true;
  });
  sink->add_helper(&helper);
  sink->add_helper(&helper);
  std::thread helping([&] { EXPECT_TRUE(sink->help()); });
  inside.WaitForNotification();
  sink->remove_helper(&helper);  // not the last: it does not wait
  EXPECT_FALSE(left);
  std::thread removing([&] {
    sink->remove_helper(&helper);
    EXPECT_TRUE(left);
  });
  absl::SleepFor(absl::Milliseconds(20));
  go_on.Notify();
  removing.join();
  helping.join();
}

// A helper may do what a callback does: complete requests, and help others.
TEST(Helpers, MayUseTheSink) {
  Sink sink;
  int depth = 0;
  Helper helper([&] {
    if (++depth < 3) {
      EXPECT_TRUE(sink->help());
    }
    sink.push(static_cast<uint64_t>(depth--));
    return true;
  });
  sink->add_helper(&helper);
  EXPECT_TRUE(sink->help());
  EXPECT_EQ(sink.take(), (Numbers{3, 2, 1}));
  sink->remove_helper(&helper);
}

// ---- Threads ----------------------------------------------------------------

constexpr uint64_t kProducers = 3;
constexpr uint64_t kEach = 10000;

std::vector<std::thread> start_producers(Sink* sink, uint64_t seed) {
  std::vector<std::thread> producers;
  for (uint64_t producer = 0; producer < kProducers; ++producer) {
    producers.emplace_back([sink, producer, seed] {
      std::mt19937_64 random(seed + producer);
      for (uint64_t i = 0; i < kEach; ++i) {
        sink->push(producer * kEach + i);
        if (random() % 64 == 0) absl::SleepFor(absl::Microseconds(50));
      }
    });
  }
  return producers;
}

// Takes a few, waits by the descriptor or asleep, as the dice fall.  A wake-up
// that gets lost shows as a hang.
TEST(Threads, OneConsumerGetsEachProducersInOrder) {
  const uint64_t seed = testing::test_seed();
  std::mt19937_64 random(seed + kProducers);
  Sink sink;
  const int fd = sink->event_fd();
  std::vector<std::thread> producers = start_producers(&sink, seed);
  std::array<uint64_t, kProducers> next{};
  for (uint64_t taken = 0; taken < kProducers * kEach;) {
    if (random() % 2 == 0) {
      sink->sleep(absl::InfiniteFuture());
      ASSERT_TRUE(sink->may_have_something());
    } else {
      pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
      ASSERT_EQ(poll(&entry, 1, -1), 1);
    }
    for (uint64_t number : sink.take(1 + random() % 100)) {
      ASSERT_EQ(number % kEach, next[number / kEach]++);
      ++taken;
    }
  }
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(sink.take(), Numbers{});
  EXPECT_FALSE(readable(fd));
}

TEST(Threads, SeveralConsumersGetEachOnce) {
  const uint64_t seed = testing::test_seed();
  Sink sink;
  sink->event_fd();
  std::vector<std::atomic<int>> times(kProducers * kEach);
  std::atomic<uint64_t> taken{0};
  std::vector<std::thread> threads = start_producers(&sink, seed);
  for (uint64_t consumer = 0; consumer < 2; ++consumer) {
    threads.emplace_back([&, consumer] {
      std::mt19937_64 random(seed + kProducers + consumer);
      while (taken.load() < times.size()) {
        sink->sleep(absl::Now() + absl::Milliseconds(1));
        for (uint64_t number : sink.take(random() % 100)) {
          times[number].fetch_add(1);
          taken.fetch_add(1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& each : times) ASSERT_EQ(each.load(), 1);
}

}  // namespace
}  // namespace spindle

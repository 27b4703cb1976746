#include "engine/completion_queue.h"

#include <fcntl.h>
#include <poll.h>

#include <atomic>
#include <thread>
#include <vector>

#include "engine/completion_sink.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

bool readable(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&entry, 1, 0) == 1;
}

// A queue, and completions out of nothing.
class Queue {
 public:
  explicit Queue(CompletionQueueOptions options = {})
      : queue(*CompletionQueue::create(options)),
        notification_(queue->sink()) {}

  AioHandle push(uint64_t user_data, absl::Status status = absl::OkStatus()) {
    AioRequest* const request = AioRequest::make();
    request->user_data = user_data;
    request->status = std::move(status);
    return push(request);
  }
  AioHandle push_callback(AioCallback callback) {
    AioRequest* const request = AioRequest::make();
    request->callback = std::move(callback);
    return push(request);
  }

  std::unique_ptr<CompletionQueue> queue;

 private:
  AioHandle push(AioRequest* request) {
    AioHandle handle(request);
    if (!request->has_callback()) queue->sink()->expect();
    request->state.store(AioRequest::State::kDone);
    AioRequest* const one[] = {request};
    queue->sink()->push(one, nullptr, notification_);
    return handle;
  }

  std::shared_ptr<BatchNotification> notification_;
};

TEST(CompletionQueue, ReapsInOrderAndInParts) {
  Queue fixture;
  for (uint64_t i = 0; i < 5; ++i) fixture.push(i);
  fixture.push(5, absl::DataLossError("torn"));
  std::vector<Completion> out(4);
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(out)), 4u);
  for (uint64_t i = 0; i < 4; ++i) EXPECT_EQ(out[i].user_data, i);
  fixture.push(6);
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(out)), 3u);
  EXPECT_EQ(out[0].user_data, 4u);
  EXPECT_EQ(out[1].status, absl::DataLossError("torn"));
  EXPECT_EQ(out[2].user_data, 6u);
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(out)), 0u);
}

TEST(CompletionQueue, RunsCallbacksInReapAlsoBehindFullOutput) {
  Queue fixture;
  fixture.push(1);
  fixture.push(2);
  int ran = 0;
  fixture.push_callback([&ran](const absl::Status&) { ++ran; });
  EXPECT_EQ(ran, 0);
  Completion one;
  size_t callbacks = 0;
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(&one, 1), &callbacks), 1u);
  EXPECT_EQ(callbacks, 1u);
  EXPECT_EQ(ran, 1);
}

TEST(CompletionQueue, CallbacksMayReapAndComplete) {
  Queue fixture;
  int ran = 0;
  fixture.push_callback([&](const absl::Status&) {
    fixture.push_callback([&ran](const absl::Status&) { ++ran; });
    EXPECT_EQ(fixture.queue->reap({}), 0u);
  });
  fixture.queue->reap({});
  EXPECT_EQ(ran, 1);
}

TEST(CompletionQueue, DestructionRunsWhatNobodyReaped) {
  int ran = 0;
  {
    Queue fixture;
    fixture.push_callback([&ran](const absl::Status&) { ++ran; });
    fixture.push(1);
  }
  EXPECT_EQ(ran, 1);
}

TEST(EventFd, IsReadableExactlyWhileThereIsSomething) {
  Queue fixture;
  fixture.push(1);
  const int fd = fixture.queue->event_fd();
  EXPECT_NE(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  EXPECT_TRUE(readable(fd));  // also for what came before it was asked for
  fixture.push(2);
  Completion one;
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(&one, 1)), 1u);
  EXPECT_TRUE(readable(fd));
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(&one, 1)), 1u);
  EXPECT_FALSE(readable(fd));
  fixture.push(3);
  EXPECT_TRUE(readable(fd));
  EXPECT_EQ(fixture.queue->reap(absl::MakeSpan(&one, 1)), 1u);
  EXPECT_FALSE(readable(fd));
}

TEST(Wait, ReturnsWhenTheTimeIsOver) {
  Queue fixture;
  Completion one;
  EXPECT_EQ(
      fixture.queue->wait(1, absl::ZeroDuration(), absl::MakeSpan(&one, 1)),
      0u);
  EXPECT_EQ(
      fixture.queue->wait(1, absl::Microseconds(200), absl::MakeSpan(&one, 1)),
      0u);
  fixture.push(7);
  EXPECT_EQ(
      fixture.queue->wait(1, absl::ZeroDuration(), absl::MakeSpan(&one, 1)),
      1u);
  EXPECT_EQ(one.user_data, 7u);
}

// Producers on other threads; the consumer sleeps, spins, or polls the
// descriptor.  A wake-up that gets lost shows as a hang.
class Consumers : public ::testing::TestWithParam<const char*> {};

TEST_P(Consumers, MissNothing) {
  constexpr uint64_t kProducers = 3;
  constexpr uint64_t kEach = 20000;
  const std::string how = GetParam();
  Queue fixture({.poll_limit = how == "spins" ? absl::Microseconds(20)
                                              : absl::ZeroDuration()});
  std::atomic<uint64_t> reaped{0};
  std::vector<std::thread> producers;
  for (uint64_t p = 0; p < kProducers; ++p) {
    producers.emplace_back([&, p] {
      for (uint64_t i = 0; i < kEach; ++i) {
        fixture.push(p * kEach + i);
        // One at a time now and then, so that the consumer falls asleep.
        while (i % 64 == 0 && reaped.load() + 200 < i)
          std::this_thread::yield();
      }
    });
  }
  std::vector<int> seen(kProducers * kEach, 0);
  std::vector<Completion> out(32);
  while (reaped.load() < seen.size()) {
    size_t count = 0;
    if (how == "polls") {
      pollfd entry{
          .fd = fixture.queue->event_fd(), .events = POLLIN, .revents = 0};
      ASSERT_EQ(poll(&entry, 1, -1), 1);
      count = fixture.queue->reap(absl::MakeSpan(out));
    } else {
      count =
          fixture.queue->wait(1, absl::InfiniteDuration(), absl::MakeSpan(out));
      ASSERT_GE(count, 1u);
    }
    for (size_t i = 0; i < count; ++i) ++seen[out[i].user_data];
    reaped += count;
  }
  for (std::thread& producer : producers) producer.join();
  for (int times : seen) ASSERT_EQ(times, 1);
}

INSTANTIATE_TEST_SUITE_P(Ways, Consumers,
                         ::testing::Values("sleeps", "spins", "polls"));

}  // namespace
}  // namespace spindle

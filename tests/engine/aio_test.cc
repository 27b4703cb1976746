#include "engine/aio.h"

#include <atomic>
#include <optional>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/engine/device_fixture.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::Buffers;
using testing::DeviceFixture;
using CancelResult = AioHandle::CancelResult;

TEST(AioHandle, OfNothingIsDone) {
  AioHandle handle;
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(handle.cancel(), CancelResult::kDone);
  AioHandle copy = handle;
  copy = std::move(handle);
  EXPECT_TRUE(copy.done());
}

TEST(AioHandle, OutlivesTheDevice) {
  AioHandle handle;
  AioHandle copy;
  {
    DeviceFixture fixture;
    Buffer buffer;
    handle = fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
    copy = handle;
    fixture.wait(1);
    EXPECT_TRUE(handle.done());
  }
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(copy.cancel(), CancelResult::kDone);
}

// One request runs and cannot be cancelled; those behind it can.
TEST(Cancel, WithdrawsWhatWaitsAndLeavesWhatRuns) {
  for (size_t limit : {size_t{0}, size_t{1}}) {
    DeviceFixture fixture({.max_in_flight = limit, .max_workers = 1});
    if (!fixture.has_threads())
      GTEST_SKIP() << "needs a request that runs meanwhile";
    fixture.driver->close_gate();
    Buffer running;
    Buffer waiting;
    AioHandle first = fixture.device->aio_readv(Sector(0), running.vector(), 1);
    fixture.driver->wait_for_waiting(1);
    AioHandle second =
        fixture.device->aio_readv(Sector(0), waiting.vector(), 2);
    AioHandle third = fixture.device->aio_readv(Sector(0), waiting.vector(), 3);
    EXPECT_EQ(first.cancel(), CancelResult::kRunning);
    EXPECT_EQ(second.cancel(), CancelResult::kWithdrawn);
    EXPECT_EQ(second.cancel(), CancelResult::kDone);
    const std::vector<Completion> cancelled = fixture.wait(1);
    EXPECT_EQ(cancelled[0].user_data, 2u);
    EXPECT_TRUE(absl::IsCancelled(cancelled[0].status));
    EXPECT_FALSE(first.done());
    fixture.driver->open_gate();
    const std::vector<Completion> rest = fixture.wait(2);
    EXPECT_EQ(rest[0].user_data, 1u);
    EXPECT_EQ(rest[1].user_data, 3u);
    EXPECT_TRUE(rest[1].status.ok());
    EXPECT_EQ(first.cancel(), CancelResult::kDone);
    EXPECT_EQ(fixture.device->counters().of(RequestKind::kRead).cancelled, 1u);
    EXPECT_EQ(third.cancel(), CancelResult::kDone);
  }
}

TEST(Cancel, WithdrawsAWriteThatWaitsForItsTurn) {
  DeviceFixture fixture({.max_workers = 1}, 4,
                        {.limits = {.writes_take_turns = true}});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer running, waiting;
  fixture.device->aio_writev(Sector(0), running.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  AioHandle second = fixture.device->aio_writev(Sector(8), waiting.vector(), 2);
  EXPECT_EQ(second.cancel(), CancelResult::kWithdrawn);
  EXPECT_EQ(fixture.wait(1)[0].user_data, 2u);
  fixture.driver->open_gate();
  EXPECT_EQ(fixture.wait(1)[0].user_data, 1u);
}

// A write that meets a read-modify-write occupies no worker, and can be
// withdrawn.
TEST(Cancel, WithdrawsWhatWaitsForARange) {
  DeviceFixture fixture({.max_workers = 2});
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that runs";
  fixture.driver->close_gate();
  Buffer ragged(10);
  Buffer block(512);
  Buffer elsewhere(512);
  fixture.device->aio_pwritev(100, ragged.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  AioHandle second = fixture.device->aio_writev(Sector(0), block.vector(), 2);
  AioHandle third = fixture.device->aio_writev(Sector(0), block.vector(), 3);
  // Two workers: this one gets one only if the two before it hold none.
  fixture.device->aio_writev(Sector(8), elsewhere.vector(), 4);
  fixture.driver->wait_for_waiting(2);
  EXPECT_EQ(fixture.driver->transfers().back().offset, 4096u);
  EXPECT_EQ(second.cancel(), CancelResult::kWithdrawn);
  const std::vector<Completion> withdrawn = fixture.wait(1);
  EXPECT_EQ(withdrawn[0].user_data, 2u);
  EXPECT_TRUE(absl::IsCancelled(withdrawn[0].status));
  fixture.driver->open_gate();
  for (const Completion& each : fixture.wait(3)) EXPECT_TRUE(each.status.ok());
  EXPECT_EQ(fixture.driver->content({0, 512}), block.text);
}

// Of several parts, only the last one meets somebody: it waits before the
// first.
TEST(Cancel, WithdrawsZeroesOfWhichNoPartIsDone) {
  DeviceFixture fixture({.max_workers = 2}, 4,
                        {.limits = {.write_zeroes_alignment_bytes = 4096}});
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that runs";
  const std::string before(4096, 'z');
  fixture.driver->set_content(0, before);
  fixture.driver->close_gate();
  Buffer ragged(10);
  fixture.device->aio_pwritev(4200, ragged.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  Buffer elsewhere(512);
  AioHandle zeroes = fixture.device->aio_write_zeroes({1024, 3584}, {}, 2);
  // Two workers: this one gets one only if the zeroes hold none.
  fixture.device->aio_writev(Sector(64), elsewhere.vector(), 3);
  fixture.driver->wait_for_waiting(2);
  EXPECT_EQ(fixture.driver->transfers().back().offset, 32768u);
  EXPECT_EQ(zeroes.cancel(), CancelResult::kWithdrawn);
  EXPECT_TRUE(absl::IsCancelled(fixture.wait(1)[0].status));
  fixture.driver->open_gate();
  fixture.wait(2);
  EXPECT_EQ(fixture.driver->content({0, 4096}), before);
  EXPECT_EQ(fixture.driver->content({4200, 10}), ragged.text);
}

// What is on the disk in part is not withdrawn, wherever the rest waits.
TEST(Cancel, LeavesAWriteThatWasDoneInPartInPlace) {
  for (const bool plugged : {false, true}) {
    DeviceFixture fixture({.max_workers = 1, .run_in_place = true});
    if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that runs";
    fixture.driver->try_limit_bytes = 512;
    fixture.driver->try_passes_gate = true;
    fixture.driver->close_gate();
    Buffer running(1024), data(4096);
    fixture.device->aio_readv(Sector(64), running.vector(), 1);
    fixture.driver->wait_for_waiting(1);
    if (plugged) fixture.device->plug();
    AioHandle handle = fixture.device->aio_writev(Sector(0), data.vector(), 2);
    EXPECT_EQ(fixture.driver->content({0, 512}), data.text.substr(0, 512));
    EXPECT_EQ(handle.cancel(), CancelResult::kRunning);
    EXPECT_FALSE(handle.done());
    fixture.driver->open_gate();
    for (const Completion& each : fixture.wait(2))
      EXPECT_TRUE(each.status.ok()) << each.status;
    if (plugged) fixture.device->unplug();
    EXPECT_EQ(fixture.driver->content({0, 4096}), data.text);
  }
}

TEST(Cancel, WorksWhilePlugged) {
  DeviceFixture fixture;
  Buffer buffer;
  fixture.device->plug();
  AioHandle handle = fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  EXPECT_TRUE(absl::IsCancelled(fixture.wait(1)[0].status));
  fixture.device->unplug();
  EXPECT_TRUE(fixture.driver->transfers().empty());
}

// The callback of a withdrawn request runs elsewhere, even if every worker of
// the device hangs.
TEST(Cancel, RunsTheCallbackElsewhereAlsoIfAllWorkersHang) {
  DeviceFixture fixture({.max_workers = 1});
  if (!fixture.has_threads()) GTEST_SKIP() << "without threads, reap() runs it";
  fixture.driver->close_gate();
  Buffer buffer;
  fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  absl::Notification ran;
  std::thread::id where;
  AioHandle handle = fixture.device->aio_readv(
      Sector(0), buffer.vector(), [&](const absl::Status& status) {
        EXPECT_TRUE(absl::IsCancelled(status));
        where = std::this_thread::get_id();
        ran.Notify();
      });
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  ran.WaitForNotification();
  EXPECT_NE(where, std::this_thread::get_id());
  fixture.driver->open_gate();
  fixture.wait(1);
}

TEST(Cancel, MeetsSubmissionAndCompletionAnyhow) {
  DeviceFixture fixture({.max_in_flight = 3});
  std::vector<AioHandle> handles;
  size_t withdrawn = 0;
  constexpr size_t kRounds = 300;
  constexpr size_t kBurst = 16;
  Buffers buffers(kBurst, 512);
  for (size_t round = 0; round < kRounds; ++round) {
    handles.clear();
    for (size_t i = 0; i < kBurst; ++i) {
      handles.push_back(fixture.device->aio_readv(Sector(i), buffers[i], i));
    }
    size_t expected = 0;
    for (AioHandle& handle : handles) {
      expected += handle.cancel() == CancelResult::kWithdrawn ? 1 : 0;
    }
    size_t cancelled = 0;
    for (const Completion& each : fixture.wait(kBurst)) {
      cancelled += absl::IsCancelled(each.status) ? 1 : 0;
    }
    ASSERT_EQ(cancelled, expected);
    withdrawn += expected;
  }
  EXPECT_EQ(fixture.device->counters().of(RequestKind::kRead).requests,
            kRounds * kBurst);
  EXPECT_EQ(fixture.device->counters().of(RequestKind::kRead).cancelled,
            withdrawn);
}

TEST(Callback, ReleasesWhatItOwnsWhenItHasRun) {
  DeviceFixture fixture;
  Buffer buffer;
  auto owned = std::make_shared<int>(1);
  std::weak_ptr<int> watched = owned;
  AioHandle handle = fixture.device->aio_readv(
      Sector(0), buffer.vector(),
      [owned = std::move(owned)](const absl::Status&) {});
  ASSERT_TRUE(fixture.device->drain().ok());
  fixture.device->reap();
  EXPECT_TRUE(watched.expired());
  EXPECT_TRUE(handle.done());
}

TEST(CallbackScope, NestsAndKnowsItsDevice) {
  EXPECT_FALSE(CallbackScope::inside(1));
  {
    const CallbackScope outer(1, /*counted=*/true);
    const CallbackScope inner(2, /*counted=*/false);
    EXPECT_TRUE(CallbackScope::inside(1));
    EXPECT_TRUE(CallbackScope::inside(2));
    EXPECT_TRUE(CallbackScope::inside_counted(1));
    EXPECT_FALSE(CallbackScope::inside_counted(2));
    EXPECT_FALSE(CallbackScope::inside(3));
  }
  EXPECT_FALSE(CallbackScope::inside(1));
}

}  // namespace
}  // namespace spindle

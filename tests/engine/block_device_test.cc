#include "engine/block_device.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/notification.h"
#include "tests/engine/device_fixture.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::Buffers;
using testing::DeviceFixture;
using testing::GatedDriver;

// ---- Creation and plain requests --------------------------------------------

TEST(Create, RefusesNothingAndNonsense) {
  auto executor = testing::make_test_executor(1);
  EXPECT_EQ(BlockDevice::create(nullptr, executor.get()).status().code(),
            absl::StatusCode::kInvalidArgument);
  GatedDriver::Options options;
  options.limits.request_alignment_bytes = 1000;
  EXPECT_EQ(BlockDevice::create(std::make_shared<GatedDriver>(options),
                                executor.get())
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Synchronous, EachKindReachesTheDriver) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer data(1024, 'd');
  ASSERT_TRUE(device.write(data.vector(), Sector(2)).ok());
  ASSERT_TRUE(device.pwrite(data.vector(), 5000).ok());
  EXPECT_EQ(fixture.driver->content({1024, 1024}), data.text);
  EXPECT_EQ(fixture.driver->content({5000, 1024}), data.text);
  Buffer back(1024);
  ASSERT_TRUE(device.read(back.vector(), Sector(2)).ok());
  EXPECT_EQ(back.text, data.text);
  ASSERT_TRUE(device.pread(back.vector(), 4999).ok());
  EXPECT_EQ(back.text, '\0' + data.text.substr(1));
  ASSERT_TRUE(device.flush().ok());
  EXPECT_EQ(fixture.driver->flush_count(), 1u);
  ASSERT_TRUE(device.write_zeroes({1024, 512}).ok());
  EXPECT_EQ(fixture.driver->content({1024, 512}), std::string(512, '\0'));
  ASSERT_TRUE(device.discard({0, 1 << 20}).ok());
  absl::StatusOr<BlockStatus> status = device.block_status({0, 1 << 20});
  ASSERT_TRUE(status.ok());
  EXPECT_GE(status->length, 1u);
  const DeviceCounters counters = device.counters();
  EXPECT_EQ(counters.of(RequestKind::kRead).requests, 2u);
  EXPECT_EQ(counters.of(RequestKind::kWrite).bytes, 2048u);
  EXPECT_EQ(counters.of(RequestKind::kBlockStatus).requests, 1u);
}

// The test driver cannot compress; what it says comes back either way.
TEST(Synchronous, ACompressedWriteIsRefusedWhereTheDriverCannot) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer data(4096, 'd');
  EXPECT_TRUE(
      absl::IsUnimplemented(device.write_compressed(data.vector(), Sector(0))));
  device.aio_write_compressed(Sector(0), data.vector(), 7);
  const auto completions = fixture.wait(1);
  EXPECT_EQ(completions[0].user_data, 7u);
  EXPECT_TRUE(absl::IsUnimplemented(completions[0].status));
  EXPECT_EQ(device.counters().of(RequestKind::kWriteCompressed).errors, 2u);
}

TEST(Asynchronous, EachKindCompletesThroughTheQueue) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer data(1024, 'd');
  Buffer back(1024);
  device.aio_writev(Sector(2), data.vector(), 1, {.fua = true});
  EXPECT_EQ(fixture.wait(1)[0].user_data, 1u);
  EXPECT_EQ(fixture.driver->flush_count(), 1u);
  device.aio_readv(Sector(2), back.vector(), 2);
  EXPECT_TRUE(fixture.wait(1)[0].status.ok());
  EXPECT_EQ(back.text, data.text);
  device.aio_pwritev(4001, data.vector(), 3);
  EXPECT_EQ(fixture.wait(1)[0].user_data, 3u);
  device.aio_preadv(4001, back.vector(), 4);
  fixture.wait(1);
  EXPECT_EQ(back.text, data.text);
  device.aio_flush(5);
  device.aio_discard({0, 512}, 6);
  device.aio_write_zeroes({512, 512}, {}, 7);
  for (const Completion& each : fixture.wait(3)) EXPECT_TRUE(each.status.ok());
}

TEST(Asynchronous, EachKindCompletesByCallback) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer data(1024, 'd');
  Buffers read(2, 1024);
  std::atomic<int> ran{0};
  const auto count = [&ran](const absl::Status& status) {
    EXPECT_TRUE(status.ok());
    ++ran;
  };
  device.aio_writev(Sector(2), data.vector(), count);
  device.aio_readv(Sector(9), read[0], count);
  device.aio_preadv(9000, read[1], count);
  device.aio_pwritev(90001, data.vector(), count);
  device.aio_flush(count);
  device.aio_discard({0, 512}, count);
  device.aio_write_zeroes({512, 512}, {}, count);
  device.aio_block_status({512, 512}, BlockStatusScope::kThisLayer,
                          [&ran](const absl::StatusOr<BlockStatus>& status) {
                            EXPECT_TRUE(status.ok());
                            EXPECT_GE(status->length, 1u);
                            ++ran;
                          });
  ASSERT_TRUE(device.drain().ok());
  device.reap();
  EXPECT_EQ(ran, 8);
}

TEST(Asynchronous, ArgumentErrorsAreCompletions) {
  DeviceFixture fixture;
  Buffer buffer(100);
  std::atomic<int> ran{0};
  fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  EXPECT_EQ(fixture.wait(1)[0].status.code(),
            absl::StatusCode::kInvalidArgument);
  fixture.device->aio_preadv(
      1 << 20, buffer.vector(), [&ran](const absl::Status& status) {
        EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
        ++ran;
      });
  ASSERT_TRUE(fixture.device->drain().ok());
  fixture.device->reap();
  EXPECT_EQ(ran, 1);
  fixture.device->aio_block_status(
      {0, 0}, BlockStatusScope::kWholeChain,
      [&ran](const absl::StatusOr<BlockStatus>& status) {
        EXPECT_FALSE(status.ok());
        ++ran;
      });
  ASSERT_TRUE(fixture.device->drain().ok());
  fixture.device->reap();
  EXPECT_EQ(ran, 2);
  EXPECT_TRUE(fixture.driver->transfers().empty());
}

TEST(Asynchronous, DriverErrorsAreCompletions) {
  DeviceFixture fixture;
  fixture.driver->fail_with(absl::ResourceExhaustedError("full"));
  Buffer buffer;
  fixture.device->aio_writev(Sector(0), buffer.vector(), 1);
  EXPECT_EQ(fixture.wait(1)[0].status, absl::ResourceExhaustedError("full"));
  EXPECT_EQ(fixture.device->counters().of(RequestKind::kWrite).errors, 1u);
}

// ---- Where things run -------------------------------------------------------

TEST(RunInPlace, OffTheSubmittingThreadDoesNoIo) {
  DeviceFixture fixture;
  if (!fixture.has_threads()) GTEST_SKIP() << "there is no other thread";
  Buffers buffers(100);
  Buffer source;
  for (uint64_t i = 0; i < 100; ++i) {
    fixture.device->aio_readv(Sector(i), buffers[i], i);
    fixture.device->aio_writev(Sector(i), source.vector(),
                               [](const absl::Status&) {});
    fixture.device->aio_pwritev(i * 7 + 1, source.vector(), i);
  }
  fixture.wait(200);
  ASSERT_TRUE(fixture.device->drain().ok());
  EXPECT_FALSE(fixture.driver->did_io(std::this_thread::get_id()));
  EXPECT_EQ(fixture.device->counters().ran_in_place, 0u);
}

TEST(RunInPlace, OnTheRequestRunsInTheCallAndItsCompletionInReap) {
  DeviceFixture fixture({.run_in_place = true});
  fixture.driver->set_content(0, std::string(4096, 'z'));
  Buffer buffer;
  bool ran = false;
  AioHandle handle = fixture.device->aio_readv(
      Sector(0), buffer.vector(), [&ran](const absl::Status&) { ran = true; });
  EXPECT_EQ(buffer.text, std::string(4096, 'z'));
  EXPECT_TRUE(handle.done());
  EXPECT_FALSE(ran);
  EXPECT_EQ(fixture.device->reap(), 1u);
  EXPECT_TRUE(ran);
  fixture.device->aio_writev(Sector(8), buffer.vector(), 4);
  EXPECT_EQ(fixture.driver->content({4096, 4096}), buffer.text);
  EXPECT_EQ(fixture.wait(1)[0].user_data, 4u);
  EXPECT_EQ(fixture.device->counters().ran_in_place, 2u);
}

TEST(RunInPlace, WhatWouldBlockGoesToThePool) {
  DeviceFixture fixture({.run_in_place = true});
  fixture.driver->set_content(0, std::string(4096, 'z'));
  fixture.driver->try_limit_bytes = 512;
  Buffer buffer;
  fixture.device->aio_readv(Sector(0), buffer.vector(), 4);
  EXPECT_TRUE(fixture.wait(1)[0].status.ok());
  EXPECT_EQ(buffer.text, std::string(4096, 'z'));
  EXPECT_EQ(fixture.driver->transfers().size(), 1u);
  EXPECT_EQ(fixture.driver->transfers()[0].length, 4096u - 512);
  EXPECT_EQ(fixture.device->counters().ran_in_place, 0u);
}

TEST(RunInPlace, APlugDoesNotHoldBackWhatNeedsNoWorker) {
  DeviceFixture fixture({.run_in_place = true});
  fixture.driver->set_content(0, std::string(4096, 'z'));
  Buffer buffer;
  fixture.device->plug();
  AioHandle handle =
      fixture.device->aio_readv(Sector(0), buffer.vector(), uint64_t{7});
  EXPECT_TRUE(handle.done());
  EXPECT_EQ(fixture.wait(1)[0].user_data, 7u);
  // What would block waits for the unplug, and is not tried a second time.
  fixture.driver->try_limit_bytes = 512;
  handle = fixture.device->aio_readv(Sector(0), buffer.vector(), uint64_t{8});
  EXPECT_FALSE(handle.done());
  EXPECT_TRUE(fixture.driver->transfers().empty());
  fixture.driver->try_limit_bytes = 4096;
  fixture.device->unplug();
  EXPECT_EQ(fixture.wait(1)[0].user_data, 8u);
  EXPECT_EQ(fixture.driver->transfers().size(), 1u);
  EXPECT_EQ(fixture.device->counters().ran_in_place, 1u);
}

TEST(RunInPlace, ThePoolSharesALargeBatch) {
  DeviceFixture fixture({.run_in_place = true, .max_in_place_per_plug = 3});
  Buffers buffers(12);
  for (uint64_t batch = 1; batch <= 2; ++batch) {
    fixture.device->plug();
    for (uint64_t i = 0; i < 6; ++i)
      fixture.device->aio_readv(Sector(i), buffers[i], i);
    fixture.device->unplug();
    fixture.wait(6);
    // Without threads there is nobody to share with.
    EXPECT_EQ(fixture.device->counters().ran_in_place,
              batch * (fixture.has_threads() ? 3 : 6));
  }
  // One by one, each may.
  for (uint64_t i = 0; i < 6; ++i)
    fixture.device->aio_readv(Sector(i), buffers[i], i);
  EXPECT_EQ(fixture.device->counters().ran_in_place,
            fixture.has_threads() ? 12u : 18u);
  fixture.wait(6);
}

// Fairness: nobody overtakes those that wait for the limit.
TEST(RunInPlace, DoesNotOvertakeWhatWaits) {
  DeviceFixture fixture({.max_in_flight = 1, .run_in_place = true});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer buffer;
  Buffer other;
  fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  fixture.device->aio_readv(Sector(8), other.vector(), 2);
  EXPECT_EQ(fixture.device->counters().ran_in_place, 0u);
  fixture.driver->open_gate();
  const std::vector<Completion> both = fixture.wait(2);
  EXPECT_EQ(both[0].user_data, 1u);
}

TEST(Callbacks, MaySubmitAndCancelButNotCloseOrDrain) {
  DeviceFixture fixture;
  BlockDevice& device = *fixture.device;
  Buffer buffer;
  Buffer own;
  std::atomic<int> ran{0};
  device.aio_readv(Sector(0), buffer.vector(), [&](const absl::Status&) {
    EXPECT_EQ(device.close().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(device.drain().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(device.set_length(512).code(),
              absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(device.reopen({}).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(device.pread(own.vector(), 0).ok());
    ++ran;
    device
        .aio_readv(Sector(0), buffer.vector(),
                   [&](const absl::Status&) { ++ran; })
        .cancel();
  });
  while (ran < 2) {
    ASSERT_TRUE(device.drain().ok());
    device.reap();
  }
  EXPECT_TRUE(device.close().ok());
}

TEST(CallbacksDeathTest, DestroyingTheDeviceInsideIsAProgrammingError) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto destroy_inside = [] {
    DeviceFixture fixture({.run_in_place = true});
    Buffer buffer;
    fixture.device->aio_readv(
        Sector(0), buffer.vector(),
        [&](const absl::Status&) { fixture.device.reset(); });
    fixture.device->reap();
  };
  EXPECT_DEATH(destroy_inside(), "inside its own callback");
}

// ---- Limits and plugs -------------------------------------------------------

TEST(MaxInFlight, HoldsAndStartsInOrder) {
  DeviceFixture fixture({.max_in_flight = 2});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs requests that run side by side";
  fixture.driver->close_gate();
  std::vector<Buffer> buffers(6);
  for (uint64_t i = 0; i < 6; ++i) {
    fixture.device->aio_readv(Sector(8 * i), buffers[i].vector(), i);
  }
  fixture.driver->wait_for_waiting(2);
  EXPECT_EQ(fixture.driver->transfers().size(), 2u);
  fixture.device->set_max_in_flight(3);
  fixture.driver->wait_for_waiting(3);
  EXPECT_EQ(fixture.driver->transfers()[2].offset, 2 * 4096u);
  fixture.driver->open_gate();
  fixture.wait(6);
  EXPECT_LE(fixture.driver->most_at_once(), 3);
}

TEST(MaxInFlight, OfOneIsStrictOrder) {
  DeviceFixture fixture({.max_in_flight = 1});
  Buffer buffer;
  for (uint64_t i = 0; i < 50; ++i) {
    fixture.device->aio_readv(Sector(8 * i), buffer.vector(), i);
  }
  const std::vector<Completion> all = fixture.wait(50);
  for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(all[i].user_data, i);
}

TEST(Plug, HoldsBackUntilTheLastUnplug) {
  DeviceFixture fixture;
  Buffers buffers(100);
  fixture.device->plug();
  fixture.device->plug();
  for (uint64_t i = 0; i < 100; ++i)
    fixture.device->aio_readv(Sector(i), buffers[i], i);
  fixture.device->unplug();
  EXPECT_EQ(fixture.device->reap(), 0u);
  EXPECT_TRUE(fixture.driver->transfers().empty());
  fixture.device->unplug();
  fixture.wait(100);
}

TEST(Plug, DoesNotHoldUpADrain) {
  DeviceFixture fixture;
  Buffer buffer;
  fixture.device->plug();
  AioHandle handle = fixture.device->aio_readv(Sector(0), buffer.vector(), 0);
  ASSERT_TRUE(fixture.device->drain().ok());
  EXPECT_TRUE(handle.done());
  fixture.device->unplug();
}

// ---- Life cycle -------------------------------------------------------------

TEST(Drain, DoesNotWaitForWhatIsSubmittedMeanwhile) {
  DeviceFixture fixture;
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer buffer;
  Buffer endless;
  AioHandle before = fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  std::atomic<bool> stop{false};
  // A request that submits itself again, for as long as the drain lasts.
  std::function<void(const absl::Status&)> again = [&](const absl::Status&) {
    if (stop) return;
    fixture.device->aio_flush(
        [&again](const absl::Status& status) { again(status); });
  };
  again(absl::OkStatus());
  std::thread opener([&] { fixture.driver->open_gate(); });
  EXPECT_TRUE(fixture.device->drain().ok());
  EXPECT_TRUE(before.done());
  opener.join();
  stop = true;
  EXPECT_TRUE(fixture.device->close().ok());
  // The last one may have been refused, and its callback be still to run.
  fixture.device.reset();
}

TEST(Close, RefusesNewRequestsAndRunsWhatWasAccepted) {
  DeviceFixture fixture({.max_in_flight = 1});
  Buffer buffer;
  for (uint64_t i = 0; i < 20; ++i)
    fixture.device->aio_writev(Sector(i), buffer.vector(), i);
  EXPECT_TRUE(fixture.device->close().ok());
  for (const Completion& each : fixture.wait(20)) EXPECT_TRUE(each.status.ok());
  EXPECT_EQ(fixture.driver->close_count(), 1);
  EXPECT_GE(fixture.driver->flush_count(), 1u);
  EXPECT_EQ(fixture.device->read(buffer.vector(), Sector(0)).code(),
            absl::StatusCode::kFailedPrecondition);
  fixture.device->aio_readv(Sector(0), buffer.vector(), 1);
  EXPECT_EQ(fixture.wait(1)[0].status.code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fixture.device->set_length(512).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fixture.device->length_bytes(), uint64_t{1} << 20);
  EXPECT_TRUE(fixture.device->close().ok());
  EXPECT_EQ(fixture.driver->close_count(), 1);
}

TEST(Close, ReturnsTheFirstErrorEachTime) {
  DeviceFixture fixture;
  fixture.driver->fail_flush_with(absl::DataLossError("gone"));
  EXPECT_EQ(fixture.device->close(), absl::DataLossError("gone"));
  EXPECT_EQ(fixture.device->close(), absl::DataLossError("gone"));
  EXPECT_EQ(fixture.driver->close_count(), 1);
}

TEST(Close, FlushesAlsoWithCacheUnsafe) {
  DeviceFixture fixture({.cache_mode = CacheMode::kUnsafe});
  EXPECT_TRUE(fixture.device->close().ok());
  EXPECT_EQ(fixture.driver->flush_count(), 1u);
}

TEST(Destructor, ClosesAndLogsTheError) {
  std::string logged;
  {
    DeviceFixture fixture(
        {.name = "sda", .log = [&](LogSeverity, absl::string_view message) {
           logged = std::string(message);
         }});
    fixture.driver->fail_flush_with(absl::DataLossError("gone"));
    fixture.device.reset();
    EXPECT_EQ(fixture.driver->close_count(), 1);
  }
  EXPECT_NE(logged.find("sda"), std::string::npos);
  EXPECT_NE(logged.find("gone"), std::string::npos);
}

TEST(Destructor, CompletesWhatNobodyReaped) {
  int ran = 0;
  DeviceFixture fixture({.run_in_place = true});
  Buffer buffer;
  BlockDevice& device = *fixture.device;
  device.aio_readv(Sector(0), buffer.vector(),
                   [&](const absl::Status&) { ++ran; });
  fixture.device.reset();
  EXPECT_EQ(ran, 1);
}

TEST(SetLength, TellsTheListenersAndMovesTheEnd) {
  DeviceFixture fixture;
  std::vector<uint64_t> told;
  fixture.device->on_length_change(
      [&](uint64_t length) { told.push_back(length); });
  Buffer buffer(512);
  EXPECT_FALSE(fixture.device->read(buffer.vector(), Sector(2048)).ok());
  ASSERT_TRUE(fixture.device->set_length((1 << 20) + 512).ok());
  EXPECT_TRUE(fixture.device->read(buffer.vector(), Sector(2048)).ok());
  ASSERT_TRUE(fixture.device->set_length(512).ok());
  EXPECT_FALSE(fixture.device->read(buffer.vector(), Sector(1)).ok());
  EXPECT_EQ(told, (std::vector<uint64_t>{(1 << 20) + 512, 512}));
  EXPECT_FALSE(fixture.device->set_length(UINT64_MAX).ok());
}

// What is submitted while the device changes waits, and is checked afterwards.
TEST(SetLength, HoldsNewRequestsUntilItIsDone) {
  DeviceFixture fixture({.run_in_place = true});
  Buffer beyond(512);
  Buffer within(512);
  AioHandle first;
  AioHandle second;
  fixture.driver->before_set_length = [&] {
    first = fixture.device->aio_readv(Sector(64), beyond.vector(), 1);
    second = fixture.device->aio_readv(Sector(0), within.vector(), 2);
    EXPECT_FALSE(first.done());
    EXPECT_FALSE(second.done());
  };
  ASSERT_TRUE(fixture.device->set_length(4096).ok());
  for (const Completion& each : fixture.wait(2)) {
    EXPECT_EQ(each.status.code(), each.user_data == 1
                                      ? absl::StatusCode::kOutOfRange
                                      : absl::StatusCode::kOk);
  }
}

TEST(Reopen, ChangesWhatTheDeviceAllows) {
  GatedDriver::Options options;
  options.capabilities.add(Capability::kReopen);
  DeviceFixture fixture({}, 2, options);
  Buffer buffer;
  EXPECT_TRUE(fixture.device->write(buffer.vector(), Sector(0)).ok());
  ASSERT_TRUE(fixture.device->reopen({.read_only = true}).ok());
  EXPECT_TRUE(fixture.device->read_only());
  EXPECT_EQ(fixture.device->write(buffer.vector(), Sector(0)).code(),
            absl::StatusCode::kPermissionDenied);
  ASSERT_TRUE(fixture.device->reopen({.read_only = false}).ok());
  EXPECT_TRUE(fixture.device->write(buffer.vector(), Sector(0)).ok());
  DeviceFixture fixed;
  EXPECT_EQ(fixed.device->reopen({}).code(), absl::StatusCode::kUnimplemented);
}

TEST(Reopen, ChangesTheCacheMode) {
  GatedDriver::Options options;
  options.capabilities.add(Capability::kReopen);
  DeviceFixture fixture({}, 2, options);
  fixture.driver->fail_flush_with(absl::DataLossError("flushed"));
  Buffer buffer;
  EXPECT_EQ(fixture.device->cache_mode(), CacheMode::kWriteback);
  EXPECT_TRUE(fixture.device->write(buffer.vector(), Sector(0)).ok());
  ASSERT_TRUE(fixture.device->reopen({}, CacheMode::kWritethrough).ok());
  EXPECT_EQ(fixture.device->cache_mode(), CacheMode::kWritethrough);
  EXPECT_TRUE(
      absl::IsDataLoss(fixture.device->write(buffer.vector(), Sector(0))));
  ASSERT_TRUE(fixture.device->reopen({}, CacheMode::kUnsafe).ok());
  EXPECT_TRUE(fixture.device->write(buffer.vector(), Sector(0)).ok());
  EXPECT_TRUE(fixture.device->flush().ok());
  // Without a word about it, it stays.
  ASSERT_TRUE(fixture.device->reopen({}).ok());
  EXPECT_EQ(fixture.device->cache_mode(), CacheMode::kUnsafe);
  fixture.driver->fail_flush_with(absl::OkStatus());
}

// ---- Executors that stop, other devices -------------------------------------

// One refusal makes room for the next: in a loop, not on the stack.
TEST(Executors, AStoppedOneRefusesAnyNumberOfWaiters) {
  constexpr size_t kWaiters = 200'000;
  DeviceFixture fixture({.max_in_flight = 1});
  Buffer buffer;
  fixture.device->plug();
  for (size_t i = 0; i < kWaiters; ++i)
    fixture.device->aio_readv(Sector(0), buffer.vector(), i);
  fixture.executor->stop(Executor::StopMode::kRunQueued);
  fixture.device->unplug();
  const std::vector<Completion> all = fixture.wait(kWaiters);
  EXPECT_TRUE(absl::IsUnavailable(all.back().status));
}

TEST(Executor, RefusedRequestsCompleteWithUnavailable) {
  DeviceFixture fixture;
  Buffer buffer;
  fixture.executor->stop(Executor::StopMode::kRunQueued);
  fixture.device->aio_readv(Sector(0), buffer.vector(), 5);
  EXPECT_EQ(fixture.wait(1)[0].status.code(), absl::StatusCode::kUnavailable);
  bool ran = false;
  fixture.device->aio_readv(
      Sector(0), buffer.vector(), [&ran](const absl::Status& status) {
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
        ran = true;
      });
  fixture.device->reap();
  EXPECT_TRUE(ran);
  EXPECT_TRUE(fixture.device->close().ok());
}

TEST(Executor, AbandonedRequestsCompleteWithCancelled) {
  DeviceFixture fixture({.max_workers = 1});
  Buffers buffers(4);
  fixture.driver->close_gate();
  for (uint64_t i = 0; i < 4; ++i)
    fixture.device->aio_readv(Sector(0), buffers[i], i);
  std::thread stopper;
  if (fixture.has_threads()) {
    fixture.driver->wait_for_waiting(1);
    stopper = std::thread(
        [&] { fixture.executor->stop(Executor::StopMode::kCancelQueued); });
    for (const Completion& each : fixture.wait(3))
      EXPECT_TRUE(absl::IsCancelled(each.status));
    fixture.driver->open_gate();
    stopper.join();
    EXPECT_TRUE(fixture.wait(1)[0].status.ok());
  } else {
    fixture.executor->stop(Executor::StopMode::kCancelQueued);
    for (const Completion& each : fixture.wait(4))
      EXPECT_TRUE(absl::IsCancelled(each.status));
  }
}

TEST(Executor, OneDeviceDoesNotStopAnother) {
  constexpr size_t kWidth = 4;
  DeviceFixture fixture({}, kWidth);
  if (!fixture.has_threads()) GTEST_SKIP() << "nothing hangs without threads";
  GatedDriver::Options driver_options;
  driver_options.length_bytes = 1 << 20;
  auto other_driver = std::make_shared<GatedDriver>(driver_options);
  auto other = *BlockDevice::create(other_driver, fixture.executor.get());
  fixture.driver->close_gate();
  Buffers hung(2 * kWidth);
  for (uint64_t i = 0; i < 2 * kWidth; ++i) {
    fixture.device->aio_readv(Sector(0), hung[i], i);
  }
  fixture.driver->wait_for_waiting(1);
  Buffer buffer;
  other->aio_readv(Sector(0), buffer.vector(), 1);
  Completion one;
  EXPECT_EQ(other->completion_queue().wait(1, absl::InfiniteDuration(),
                                           absl::MakeSpan(&one, 1)),
            1u);
  fixture.driver->open_gate();
  fixture.wait(2 * kWidth);
}

TEST(CompletionQueues, MayBeShared) {
  auto queue = *CompletionQueue::create({});
  DeviceFixture first({.completion_queue = queue.get()});
  DeviceFixture second({.completion_queue = queue.get()});
  Buffers buffers(2);
  first.device->aio_readv(Sector(0), buffers[0], 1);
  second.device->aio_readv(Sector(0), buffers[1], 2);
  std::vector<Completion> out(2);
  EXPECT_EQ(queue->wait(2, absl::InfiniteDuration(), absl::MakeSpan(out)), 2u);
  EXPECT_EQ(out[0].user_data + out[1].user_data, 3u);
  EXPECT_EQ(&first.device->completion_queue(), queue.get());
  first.device.reset();
  second.device.reset();
}

}  // namespace
}  // namespace spindle

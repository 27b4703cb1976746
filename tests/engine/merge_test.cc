// Requests of one plug that adjoin run as one transfer, and nobody can tell but
// by the driver's calls.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/aio.h"
#include "gtest/gtest.h"
#include "tests/engine/device_fixture.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::Buffers;
using testing::DeviceFixture;
using testing::GatedDriver;
using CancelResult = AioHandle::CancelResult;

constexpr uint64_t kBytes = 4096;

Sector sector_of(uint64_t block) {
  return Sector::from_byte_offset(block * kBytes);
}

// Blocks whose bytes say which one it is.
struct Blocks {
  explicit Blocks(size_t count) {
    for (size_t i = 0; i < count; ++i)
      buffers.emplace_back(kBytes, static_cast<char>('a' + i));
  }
  IoVector operator[](size_t i) { return buffers[i].vector(); }
  std::string content() const {
    std::string all;
    for (const Buffer& buffer : buffers) all += buffer.text;
    return all;
  }
  std::vector<Buffer> buffers;
};

std::vector<uint64_t> lengths_of(const GatedDriver& driver) {
  std::vector<uint64_t> lengths;
  for (const GatedDriver::Transfer& transfer : driver.transfers())
    lengths.push_back(transfer.length);
  return lengths;
}

TEST(Merge, WritesInARowAreOneTransferAndComplete) {
  DeviceFixture fixture;
  Blocks blocks(5);
  fixture.device->plug();
  for (size_t i = 0; i < 5; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  const std::vector<Completion> done = fixture.wait(5);
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_EQ(done[i].user_data, i);
    EXPECT_TRUE(done[i].status.ok()) << done[i].status;
  }
  EXPECT_EQ(lengths_of(*fixture.driver), std::vector<uint64_t>{5 * kBytes});
  EXPECT_EQ(fixture.driver->content({0, 5 * kBytes}), blocks.content());
  const auto counters = fixture.device->counters().of(RequestKind::kWrite);
  EXPECT_EQ(counters.requests, 5u);
  EXPECT_EQ(counters.bytes, 5 * kBytes);
}

TEST(Merge, ReadsInARowAreOneTransfer) {
  DeviceFixture fixture;
  Blocks blocks(3);
  fixture.driver->set_content(kBytes, blocks.content());
  Buffers read(3);
  fixture.device->plug();
  for (size_t i = 0; i < 3; ++i)
    fixture.device->aio_readv(sector_of(1 + i), read[i], i);
  fixture.device->unplug();
  fixture.wait(3);
  EXPECT_EQ(lengths_of(*fixture.driver), std::vector<uint64_t>{3 * kBytes});
  for (size_t i = 0; i < 3; ++i) {
    std::string found(kBytes, '\0');
    read[i].copy_to(0, found.data(), kBytes);
    EXPECT_EQ(found, blocks.buffers[i].text);
  }
}

// What is said of two requests keeps them apart.
TEST(Merge, LeavesApartWhatIsNotTheSame) {
  struct Case {
    const char* what;
    BlockDeviceOptions options;
    WriteFlags flags;       // of the second
    uint64_t second_block;  // the first is at 0
    bool second_reads;
    size_t transfers;
  };
  const Case cases[] = {
      {"in a row", {}, {}, 1, false, 1},
      {"never", {.merge_bytes = 0}, {}, 1, false, 2},
      {"too long", {.merge_bytes = 2 * kBytes - 1}, {}, 1, false, 2},
      {"a gap", {}, {}, 2, false, 2},
      {"the same place", {}, {}, 0, false, 2},
      {"one is forced out", {}, {.fua = true}, 1, false, 2},
      {"one reads", {}, {}, 1, true, 2},
      {"zeroes are detected",
       {.detect_zeroes = DetectZeroes::kOn},
       {},
       1,
       false,
       2},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    DeviceFixture fixture(each.options);
    Blocks blocks(2);
    fixture.device->plug();
    fixture.device->aio_writev(Sector(0), blocks[0], 1);
    if (each.second_reads) {
      fixture.device->aio_readv(sector_of(each.second_block), blocks[1], 2);
    } else {
      fixture.device->aio_writev(sector_of(each.second_block), blocks[1], 2,
                                 each.flags);
    }
    fixture.device->unplug();
    for (const Completion& done : fixture.wait(2))
      EXPECT_TRUE(done.status.ok()) << done.status;
    EXPECT_EQ(fixture.driver->transfers().size(), each.transfers);
  }
}

TEST(Merge, EndsWhereTheLimitIs) {
  DeviceFixture fixture({.max_workers = 1, .merge_bytes = 3 * kBytes});
  Blocks blocks(8);
  fixture.device->plug();
  for (size_t i = 0; i < 8; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  fixture.wait(8);
  EXPECT_EQ(lengths_of(*fixture.driver),
            (std::vector<uint64_t>{3 * kBytes, 3 * kBytes, 2 * kBytes}));
  EXPECT_EQ(fixture.driver->content({0, 8 * kBytes}), blocks.content());
}

// A callback may wait for another request.
TEST(Merge, LeavesRequestsWithCallbacksApart) {
  DeviceFixture fixture;
  Blocks blocks(2);
  std::atomic<int> ran{0};
  fixture.device->plug();
  for (size_t i = 0; i < 2; ++i) {
    fixture.device->aio_writev(sector_of(i), blocks[i],
                               [&](const absl::Status&) { ++ran; });
  }
  fixture.device->unplug();
  ASSERT_TRUE(fixture.device->drain().ok());
  fixture.device->reap();
  EXPECT_EQ(ran, 2);
  EXPECT_EQ(fixture.driver->transfers().size(), 2u);
}

// If it fails as a whole, each is tried by itself: only what cannot be done
// fails.
TEST(Merge, AnErrorIsThatOfTheRequestsThatFailByThemselves) {
  DeviceFixture fixture;
  Blocks blocks(3);
  fixture.driver->fail_transfers_at(kBytes, absl::DataLossError("one block"));
  fixture.device->plug();
  for (size_t i = 0; i < 3; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  for (const Completion& done : fixture.wait(3)) {
    EXPECT_EQ(done.status.code(), done.user_data == 1
                                      ? absl::StatusCode::kDataLoss
                                      : absl::StatusCode::kOk);
  }
  EXPECT_EQ(fixture.driver->content({2 * kBytes, kBytes}),
            blocks.buffers[2].text);
  EXPECT_EQ(fixture.device->counters().of(RequestKind::kWrite).errors, 1u);
}

// Whichever is withdrawn, the others run.
TEST(Merge, OneOfARowIsWithdrawnWithoutTheOthers) {
  for (size_t withdrawn = 0; withdrawn < 4; ++withdrawn) {
    SCOPED_TRACE(withdrawn);
    DeviceFixture fixture({.max_workers = 1});
    if (!fixture.has_threads())
      GTEST_SKIP() << "needs a request that runs meanwhile";
    fixture.driver->close_gate();
    Buffer running;
    fixture.device->aio_readv(sector_of(16), running.vector(), 99);
    fixture.driver->wait_for_waiting(1);
    Blocks blocks(4);
    std::vector<AioHandle> handles;
    fixture.device->plug();
    for (size_t i = 0; i < 4; ++i) {
      handles.push_back(fixture.device->aio_writev(sector_of(i), blocks[i], i));
    }
    fixture.device->unplug();
    EXPECT_EQ(handles[withdrawn].cancel(), CancelResult::kWithdrawn);
    fixture.driver->open_gate();
    for (const Completion& done : fixture.wait(5)) {
      EXPECT_EQ(absl::IsCancelled(done.status), done.user_data == withdrawn);
    }
    std::string expected = blocks.content();
    expected.replace(withdrawn * kBytes, kBytes, kBytes, '\0');
    EXPECT_EQ(fixture.driver->content({0, 4 * kBytes}), expected);
  }
}

// All of them, from both ends.
TEST(Merge, AWholeRowIsWithdrawn) {
  DeviceFixture fixture({.max_workers = 1});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer running;
  fixture.device->aio_readv(sector_of(16), running.vector(), 99);
  fixture.driver->wait_for_waiting(1);
  Blocks blocks(4);
  std::vector<AioHandle> handles;
  fixture.device->plug();
  for (size_t i = 0; i < 4; ++i)
    handles.push_back(fixture.device->aio_writev(sector_of(i), blocks[i], i));
  fixture.device->unplug();
  for (const size_t i : {0, 3, 1, 2})
    EXPECT_EQ(handles[i].cancel(), CancelResult::kWithdrawn);
  fixture.driver->open_gate();
  size_t cancelled = 0;
  for (const Completion& done : fixture.wait(5))
    cancelled += absl::IsCancelled(done.status) ? 1 : 0;
  EXPECT_EQ(cancelled, 4u);
  EXPECT_EQ(fixture.driver->transfers().size(), 1u);
}

// A row that meets a read-modify-write is taken apart: what does not meet it
// goes on.
TEST(Merge, ARowThatMeetsAnotherRequestWaits) {
  DeviceFixture fixture({.max_workers = 2});
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that runs";
  fixture.driver->close_gate();
  Buffer ragged(10, 'r');
  fixture.device->aio_pwritev(kBytes + 100, ragged.vector(), 99);
  fixture.driver->wait_for_waiting(1);
  Blocks blocks(3);
  fixture.device->plug();
  for (size_t i = 0; i < 3; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  fixture.driver->wait_for_waiting(2);
  EXPECT_EQ(fixture.driver->transfers().back().offset, 0u);
  EXPECT_EQ(fixture.driver->transfers().back().length, kBytes);
  fixture.driver->open_gate();
  for (const Completion& done : fixture.wait(4))
    EXPECT_TRUE(done.status.ok()) << done.status;
  EXPECT_EQ(fixture.driver->content({0, 3 * kBytes}), blocks.content());
}

// A row that failed has perhaps written a part of each of its requests: none is
// withdrawn any more, also if it waits for a range.
TEST(Merge, WhatARowThatFailedHasBegunIsNotWithdrawn) {
  DeviceFixture fixture({.max_workers = 2});
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that runs";
  Buffer ragged(10, 'r');
  int failures = 0;  // of the row, then of its first request by itself
  fixture.driver->before_failure = [&] {
    if (++failures == 1) {
      fixture.driver->close_gate();
      fixture.device->aio_pwritev(kBytes + 100, ragged.vector(), 99);
    } else {
      fixture.driver->wait_for_waiting(1);
    }
  };
  fixture.driver->fail_transfers_at(0, absl::DataLossError("one block"));
  Blocks blocks(2);
  fixture.device->plug();
  fixture.device->aio_writev(sector_of(0), blocks[0], 0);
  AioHandle second = fixture.device->aio_writev(sector_of(1), blocks[1], 1);
  fixture.device->unplug();
  EXPECT_TRUE(absl::IsDataLoss(fixture.wait(1)[0].status));
  // The second now waits for the range that `ragged` holds at the gate.
  const absl::Time end = absl::Now() + absl::Milliseconds(100);
  while (absl::Now() < end) ASSERT_EQ(second.cancel(), CancelResult::kRunning);
  fixture.driver->open_gate();
  for (const Completion& done : fixture.wait(2))
    EXPECT_TRUE(done.status.ok()) << done.status;
  EXPECT_EQ(fixture.driver->content({kBytes, kBytes}), blocks.buffers[1].text);
}

// What an executor that stops has not begun is withdrawn, each by itself.
TEST(Merge, AStoppedExecutorWithdrawsEachOfThem) {
  DeviceFixture fixture({.max_workers = 1});
  if (!fixture.has_threads())
    GTEST_SKIP() << "needs a request that runs meanwhile";
  fixture.driver->close_gate();
  Buffer running;
  fixture.device->aio_readv(sector_of(16), running.vector(), 99);
  fixture.driver->wait_for_waiting(1);
  Blocks blocks(3);
  fixture.device->plug();
  for (size_t i = 0; i < 3; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  std::thread stopper(
      [&] { fixture.executor->stop(Executor::StopMode::kCancelQueued); });
  size_t cancelled = 0;
  for (const Completion& done : fixture.wait(3))
    cancelled += absl::IsCancelled(done.status) ? 1 : 0;
  EXPECT_EQ(cancelled, 3u);
  fixture.driver->open_gate();
  stopper.join();
  fixture.wait(1);
  // Nobody takes the next ones.
  fixture.device->plug();
  for (size_t i = 0; i < 3; ++i)
    fixture.device->aio_writev(sector_of(i), blocks[i], i);
  fixture.device->unplug();
  for (const Completion& done : fixture.wait(3))
    EXPECT_TRUE(absl::IsUnavailable(done.status)) << done.status;
}

}  // namespace
}  // namespace spindle

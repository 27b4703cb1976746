// Requests that meet a change of the device's length: each succeeds or gets
// kOutOfRange by the length when it was submitted.  The driver stops in a
// transfer, or in the midst of the change, and so forces who comes first.
#include <atomic>
#include <functional>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/engine/device_fixture.h"

namespace spindle {
namespace {

using testing::Buffer;
using testing::DeviceFixture;
using CancelResult = AioHandle::CancelResult;

constexpr uint64_t kLength = 1 << 20;
constexpr uint64_t kShort = kLength / 2;
constexpr uint64_t kLong = 2 * kLength;
// Within the device as it is, behind the end of the shorter one.
constexpr ByteRange kCut{kLength - 4096, 4096};
// Within the longer one only.
constexpr ByteRange kGained{kLength, 4096};

// A change of the length that stands before its driver until it is let go.
class StoppedChange {
 public:
  StoppedChange(DeviceFixture* fixture, uint64_t length_bytes)
      : fixture_(*fixture) {
    fixture_.driver->before_set_length = [this] {
      absl::MutexLock lock(&mutex_);
      reached_ = true;
      mutex_.Await(absl::Condition(&resumed_));
    };
    thread_ = std::thread([this, length_bytes] {
      status_ = fixture_.device->set_length(length_bytes);
    });
  }
  ~StoppedChange() { (void)finish(); }

  bool reached() const {
    absl::MutexLock lock(&mutex_);
    return reached_;
  }
  void wait_until_reached() const {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&reached_));
  }
  absl::Status finish() {
    {
      absl::MutexLock lock(&mutex_);
      resumed_ = true;
    }
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  DeviceFixture& fixture_;
  mutable absl::Mutex mutex_;
  bool reached_ ABSL_GUARDED_BY(mutex_) = false;
  bool resumed_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_;
  std::thread thread_;
};

// One of each kind of request that has a range; flushes have none.
using Submit = std::function<AioHandle(BlockDevice*, const IoVector&, ByteRange,
                                       uint64_t)>;
struct Kind {
  const char* name;
  Submit submit;
};
std::vector<Kind> kinds() {
  const auto at = [](ByteRange range) {
    return Sector::from_byte_offset(range.offset);
  };
  return {
      {"read",
       [at](BlockDevice* device, const IoVector& qiov, ByteRange range,
            uint64_t data) {
         return device->aio_readv(at(range), qiov, data);
       }},
      {"write",
       [at](BlockDevice* device, const IoVector& qiov, ByteRange range,
            uint64_t data) {
         return device->aio_writev(at(range), qiov, data);
       }},
      {"pread",
       [](BlockDevice* device, const IoVector& qiov, ByteRange range,
          uint64_t data) {
         return device->aio_preadv(range.offset, qiov, data);
       }},
      {"pwrite",
       [](BlockDevice* device, const IoVector& qiov, ByteRange range,
          uint64_t data) {
         return device->aio_pwritev(range.offset, qiov, data);
       }},
      {"discard",
       [](BlockDevice* device, const IoVector&, ByteRange range,
          uint64_t data) { return device->aio_discard(range, data); }},
      {"write zeroes",
       [](BlockDevice* device, const IoVector&, ByteRange range,
          uint64_t data) { return device->aio_write_zeroes(range, {}, data); }},
  };
}

// The same requests as synchronous calls.
std::vector<
    std::function<absl::Status(BlockDevice*, const IoVector&, ByteRange)>>
synchronous_calls() {
  const auto at = [](ByteRange range) {
    return Sector::from_byte_offset(range.offset);
  };
  return {[at](BlockDevice* device, const IoVector& qiov, ByteRange range) {
            return device->read(qiov, at(range));
          },
          [at](BlockDevice* device, const IoVector& qiov, ByteRange range) {
            return device->write(qiov, at(range));
          },
          [](BlockDevice* device, const IoVector& qiov, ByteRange range) {
            return device->pread(qiov, range.offset);
          },
          [](BlockDevice* device, const IoVector& qiov, ByteRange range) {
            return device->pwrite(qiov, range.offset);
          },
          [](BlockDevice* device, const IoVector&, ByteRange range) {
            return device->discard(range);
          },
          [](BlockDevice* device, const IoVector&, ByteRange range) {
            return device->write_zeroes(range);
          },
          [](BlockDevice* device, const IoVector&, ByteRange range) {
            return device->block_status(range).status();
          }};
}

class ResizeRace : public ::testing::TestWithParam<bool> {
 protected:
  // Whether requests may run inside the submitting call.
  BlockDeviceOptions options(size_t max_in_flight = 0) const {
    return {.max_in_flight = max_in_flight, .run_in_place = GetParam()};
  }
};
INSTANTIATE_TEST_SUITE_P(Where, ResizeRace, ::testing::Bool(),
                         [](const auto& info) {
                           return std::string(info.param ? "InPlace"
                                                         : "OnThePool");
                         });

// ---- Submitted before -------------------------------------------------------

// It runs; the shrink waits.
TEST_P(ResizeRace, AShrinkWaitsForWhatRuns) {
  DeviceFixture fixture(options());
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that stands";
  fixture.driver->close_gate();
  Buffer buffer;
  fixture.device->aio_writev(Sector::from_byte_offset(kCut.offset),
                             buffer.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  StoppedChange shrink(&fixture, kShort);
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_FALSE(shrink.reached());
  fixture.driver->open_gate();
  EXPECT_EQ(fixture.wait(1)[0].status, absl::OkStatus());
  EXPECT_EQ(shrink.finish(), absl::OkStatus());
  EXPECT_TRUE(absl::IsOutOfRange(fixture.device->read(
      buffer.vector(), Sector::from_byte_offset(kCut.offset))));
}

// What waits for its turn was submitted at the old length all the same.
TEST_P(ResizeRace, AShrinkWaitsForWhatIsThrottledOrPlugged) {
  for (const bool plugged : {false, true}) {
    DeviceFixture fixture(options(/*max_in_flight=*/1));
    fixture.driver->close_gate();
    std::vector<Buffer> buffers(kinds().size());
    if (plugged) fixture.device->plug();
    uint64_t data = 0;
    for (const Kind& kind : kinds()) {
      kind.submit(fixture.device.get(), buffers[data].vector(), kCut, data);
      ++data;
    }
    StoppedChange shrink(&fixture, kShort);
    absl::SleepFor(absl::Milliseconds(10));
    EXPECT_FALSE(shrink.reached());
    fixture.driver->open_gate();
    EXPECT_EQ(shrink.finish(), absl::OkStatus());
    for (const Completion& each : fixture.wait(data)) {
      EXPECT_EQ(each.status, absl::OkStatus())
          << kinds()[each.user_data].name << (plugged ? ", plugged" : "");
    }
    if (plugged) fixture.device->unplug();
    EXPECT_EQ(fixture.device->length_bytes(), kShort);
  }
}

// One that waits for the range of another, too.
TEST_P(ResizeRace, AShrinkWaitsForWhatWaitsForARange) {
  DeviceFixture fixture(options());
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that stands";
  fixture.driver->close_gate();
  Buffer first(100, '1'), second(100, '2');
  fixture.device->aio_pwritev(kCut.offset + 10, first.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  fixture.device->aio_pwritev(kCut.offset + 200, second.vector(), 2);
  StoppedChange shrink(&fixture, kShort);
  fixture.driver->open_gate();
  EXPECT_EQ(shrink.finish(), absl::OkStatus());
  for (const Completion& each : fixture.wait(2))
    EXPECT_EQ(each.status, absl::OkStatus());
}

// Withdrawn while the shrink waits for it: the shrink waits no longer.
TEST_P(ResizeRace, AShrinkDoesNotWaitForWhatIsWithdrawn) {
  DeviceFixture fixture(options(/*max_in_flight=*/1));
  if (!fixture.has_threads()) GTEST_SKIP() << "needs a request that stands";
  fixture.driver->close_gate();
  Buffer running, waiting;
  fixture.device->aio_writev(Sector(0), running.vector(), 1);
  fixture.driver->wait_for_waiting(1);
  AioHandle handle = fixture.device->aio_writev(
      Sector::from_byte_offset(kCut.offset), waiting.vector(), 2);
  StoppedChange shrink(&fixture, kShort);
  absl::SleepFor(absl::Milliseconds(10));
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  const Completion withdrawn = fixture.wait(1)[0];
  EXPECT_EQ(withdrawn.user_data, 2u);
  EXPECT_TRUE(absl::IsCancelled(withdrawn.status));
  fixture.driver->open_gate();
  EXPECT_EQ(fixture.wait(1)[0].status, absl::OkStatus());
  EXPECT_EQ(shrink.finish(), absl::OkStatus());
  // Only the first ever reached the driver.
  EXPECT_EQ(fixture.driver->transfers().size(), 1u);
}

// It was too long when it was submitted; that it would fit now is too late.
TEST_P(ResizeRace, WhatWasTooLongBeforeAGrowthIsOutOfRange) {
  DeviceFixture fixture(options());
  Buffer buffer;
  fixture.device->aio_readv(Sector::from_byte_offset(kGained.offset),
                            buffer.vector(), 1);
  ASSERT_TRUE(fixture.device->set_length(kLong).ok());
  EXPECT_TRUE(absl::IsOutOfRange(fixture.wait(1)[0].status));
}

// ---- Submitted meanwhile ----------------------------------------------------

TEST_P(ResizeRace, WhatIsSubmittedMeanwhileHasTheNewLength) {
  struct Case {
    uint64_t length_bytes;
    ByteRange range;
    absl::StatusCode expected;
  };
  const Case cases[] = {{kShort, kCut, absl::StatusCode::kOutOfRange},
                        {kLong, kGained, absl::StatusCode::kOk}};
  for (const size_t limit : {0, 1, 3}) {
    for (const Case& each : cases) {
      DeviceFixture fixture(options(limit));
      StoppedChange change(&fixture, each.length_bytes);
      change.wait_until_reached();
      const size_t count = kinds().size();
      const auto synchronous = synchronous_calls();
      std::vector<Buffer> buffers(2 * count + synchronous.size());
      std::vector<AioHandle> handles;
      std::atomic<size_t> called{0};
      for (size_t i = 0; i < count; ++i) {
        handles.push_back(kinds()[i].submit(
            fixture.device.get(), buffers[i].vector(), each.range, i));
        EXPECT_FALSE(handles.back().done()) << kinds()[i].name;
      }
      // By callback: what they share is the path above.
      handles.push_back(fixture.device->aio_readv(
          Sector::from_byte_offset(each.range.offset), buffers[count].vector(),
          [&](const absl::Status& status) {
            EXPECT_EQ(status.code(), each.expected) << status;
            ++called;
          }));
      EXPECT_FALSE(handles.back().done());
      std::vector<std::future<absl::Status>> calls;
      size_t next = 2 * count;
      for (const auto& call : synchronous) {
        calls.push_back(std::async(std::launch::async, [&, memory = next++] {
          return call(fixture.device.get(), buffers[memory].vector(),
                      each.range);
        }));
      }
      EXPECT_EQ(change.finish(), absl::OkStatus());
      for (const Completion& done : fixture.wait(count)) {
        EXPECT_EQ(done.status.code(), each.expected)
            << kinds()[done.user_data].name << ": " << done.status;
      }
      for (auto& call : calls) {
        const absl::Status status = call.get();
        EXPECT_EQ(status.code(), each.expected) << status;
      }
      EXPECT_EQ(fixture.device->drain(), absl::OkStatus());
      fixture.device->reap();
      EXPECT_EQ(called, 1u);
    }
  }
}

// What is held is withdrawn like everything that waits, and does no I/O.
TEST_P(ResizeRace, WhatIsHeldCanBeWithdrawn) {
  DeviceFixture fixture(options());
  StoppedChange growth(&fixture, kLong);
  growth.wait_until_reached();
  Buffer buffer;
  AioHandle handle = fixture.device->aio_writev(
      Sector::from_byte_offset(kGained.offset), buffer.vector(), 1);
  EXPECT_EQ(handle.cancel(), CancelResult::kWithdrawn);
  EXPECT_TRUE(absl::IsCancelled(fixture.wait(1)[0].status));
  EXPECT_EQ(growth.finish(), absl::OkStatus());
  EXPECT_TRUE(fixture.driver->transfers().empty());
}

// A change that fails leaves the length, and those that waited, as they were.
TEST_P(ResizeRace, AFailedChangeLetsThoseThatWaitedGoOn) {
  testing::GatedDriver::Options driver_options;
  driver_options.max_length_bytes = kLength;
  DeviceFixture fixture(options(), 4, driver_options);
  StoppedChange growth(&fixture, kLong);
  growth.wait_until_reached();
  Buffer within, beyond;
  fixture.device->aio_writev(Sector::from_byte_offset(kCut.offset),
                             within.vector(), 1);
  fixture.device->aio_writev(Sector::from_byte_offset(kGained.offset),
                             beyond.vector(), 2);
  EXPECT_FALSE(growth.finish().ok());
  for (const Completion& each : fixture.wait(2)) {
    EXPECT_EQ(each.status.code(), each.user_data == 1
                                      ? absl::StatusCode::kOk
                                      : absl::StatusCode::kOutOfRange);
  }
}

// Two changes take turns; who comes between is judged by the first.
TEST_P(ResizeRace, ChangesTakeTurns) {
  DeviceFixture fixture(options());
  StoppedChange growth(&fixture, kLong);
  growth.wait_until_reached();
  Buffer buffer;
  fixture.device->aio_writev(Sector::from_byte_offset(kGained.offset),
                             buffer.vector(), 1);
  auto shrink = std::async(std::launch::async,
                           [&] { return fixture.device->set_length(kShort); });
  EXPECT_EQ(growth.finish(), absl::OkStatus());
  EXPECT_EQ(fixture.wait(1)[0].status, absl::OkStatus());
  EXPECT_EQ(shrink.get(), absl::OkStatus());
  EXPECT_EQ(fixture.device->length_bytes(), kShort);
}

}  // namespace
}  // namespace spindle

#include "engine/jobs/copy.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "engine/block_device.h"
#include "engine/filter_driver.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

using testing::MemoryDriver;

constexpr uint64_t kMib = uint64_t{1} << 20;

struct Side {
  explicit Side(uint64_t length_bytes, Executor* executor) {
    MemoryDriver::Options options;
    options.length_bytes = length_bytes;
    memory = std::make_shared<MemoryDriver>(options);
    auto made = BlockDevice::create(memory, executor);
    EXPECT_TRUE(made.ok()) << made.status();
    device = *std::move(made);
  }
  std::shared_ptr<MemoryDriver> memory;
  std::unique_ptr<BlockDevice> device;
};

class CopyImages : public ::testing::TestWithParam<bool> {
 protected:
  const std::unique_ptr<Executor> executor_ = make_executor({});
};
INSTANTIATE_TEST_SUITE_P(InOrder, CopyImages, ::testing::Bool());

TEST_P(CopyImages, CopiesDataAndLeavesZeroesOut) {
  Side source(20 * kMib + 700, executor_.get());
  Side target(20 * kMib + 1024, executor_.get());
  source.memory->set_content(3 * kMib + 5000, std::string(100000, 'a'));
  source.memory->set_content(9 * kMib, std::string(5 * kMib, 'b'));
  source.memory->set_content(20 * kMib + 600, std::string(100, 'c'));
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  uint64_t last = 0;
  options.job.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    EXPECT_LT(total, 6 * kMib);
    last = done;
  };
  ASSERT_EQ(copy_image(*source.device, *target.device, options),
            absl::OkStatus());
  EXPECT_GT(last, 5 * kMib);
  const std::string copy = target.memory->content();
  EXPECT_TRUE(copy.substr(0, 20 * kMib + 700) == source.memory->content());
  EXPECT_EQ(copy.substr(20 * kMib + 700), std::string(324, '\0'));
  // What was written of 20 MiB: 100 KB, 5 MiB, the end.
  EXPECT_LT(target.device->counters().of(RequestKind::kWrite).bytes, 6 * kMib);
}

// Every other sector has data, as far as it says.
class Striped : public MemoryDriver {
 public:
  using MemoryDriver::MemoryDriver;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope) override {
    const bool data = range.offset / kSectorSizeBytes % 2 == 0;
    BlockStatus status;
    status.length = std::min(
        range.length, kSectorSizeBytes - range.offset % kSectorSizeBytes);
    status.allocated = true;
    status.data = data;
    status.zero = !data;
    return status;
  }
};

// What was counted is not asked for again, as far as it is remembered.
TEST_P(CopyImages, AsksForTheStatusOnce) {
  constexpr uint64_t kRuns = 70'000;
  constexpr uint64_t kRemembered = 65'536;
  const auto memory = std::make_shared<Striped>(
      MemoryDriver::Options{.length_bytes = kRuns * kSectorSizeBytes});
  memory->set_content(0, "begin");
  memory->set_content((kRuns - 2) * kSectorSizeBytes, "end");
  const auto source = BlockDevice::create(memory, executor_.get());
  ASSERT_TRUE(source.ok());
  for (const bool counted : {false, true}) {
    Side target(kRuns * kSectorSizeBytes, executor_.get());
    CopyOptions options;
    options.in_order = GetParam();
    options.job.executor = executor_.get();
    if (counted) options.job.progress = [](uint64_t, uint64_t) {};
    const auto asked = [&] {
      return (*source)->counters().of(RequestKind::kBlockStatus).requests;
    };
    const uint64_t before = asked();
    ASSERT_EQ(copy_image(**source, *target.device, options), absl::OkStatus());
    EXPECT_EQ(asked() - before, counted ? 2 * kRuns - kRemembered : kRuns);
    EXPECT_TRUE(target.memory->content() == memory->content());
  }
}

TEST_P(CopyImages, TheFirstErrorEndsIt) {
  Side source(20 * kMib, executor_.get());
  source.memory->set_content(0, std::string(20 * kMib, 'x'));
  MemoryDriver::Options small;
  small.length_bytes = 20 * kMib;
  small.read_only = true;
  auto target = BlockDevice::create(std::make_shared<MemoryDriver>(small),
                                    executor_.get());
  ASSERT_TRUE(target.ok());
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  const absl::Status status = copy_image(*source.device, **target, options);
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_LT((*target)->counters().of(RequestKind::kWrite).requests, 10u);
}

// Reads the piece at 0 only when `others` have been read, or start() is called.
class SlowStart final : public FilterDriver {
 public:
  SlowStart(std::shared_ptr<BlockDriver> child, int others)
      : FilterDriver(std::move(child)), others_(others) {}
  absl::Status read(const IoVector& qiov, Sector sector) override {
    if (sector.byte_offset() == 0) started_.WaitForNotification();
    const absl::Status status = child().read(qiov, sector);
    if (count_.fetch_add(1) + 1 == others_) start();
    return status;
  }
  void start() {
    if (!is_started_.exchange(true)) started_.Notify();
  }

 private:
  const int others_;
  std::atomic<int> count_{0};
  std::atomic<bool> is_started_{false};
  absl::Notification started_;
};

// Has clusters, and notes where it is written to.
class Target final : public FilterDriver {
 public:
  Target(std::shared_ptr<BlockDriver> child, absl::Status result)
      : FilterDriver(std::move(child)), result_(std::move(result)) {}
  ImageInfo info() const override {
    ImageInfo info = child().info();
    info.cluster_size_bytes = 65536;
    return info;
  }
  absl::Status write(const IoVector& qiov, Sector sector) override {
    {
      absl::MutexLock lock(&mutex_);
      offsets_.push_back(sector.byte_offset());
    }
    return result_.ok() ? child().write(qiov, sector) : result_;
  }
  std::vector<uint64_t> offsets() {
    absl::MutexLock lock(&mutex_);
    return offsets_;
  }

 private:
  const absl::Status result_;
  absl::Mutex mutex_;
  std::vector<uint64_t> offsets_ ABSL_GUARDED_BY(mutex_);
};

class CopyInTurn : public ::testing::TestWithParam<bool> {
 protected:
  // Copies 40 MiB of data; the first piece is read after `others` have been, or
  // once one is finished (in order, none can be); `result`: of every write.
  absl::Status copy(int others, absl::Status result) {
    MemoryDriver::Options options;
    options.length_bytes = 40 * kMib;
    const auto memory = std::make_shared<MemoryDriver>(options);
    memory->set_content(0, std::string(40 * kMib, 'x'));
    target_ = std::make_shared<Target>(std::make_shared<MemoryDriver>(options),
                                       std::move(result));
    const auto source = std::make_shared<SlowStart>(memory, others);
    const auto from = BlockDevice::create(source, executor_.get());
    const auto to = BlockDevice::create(target_, executor_.get());
    EXPECT_TRUE(from.ok() && to.ok());
    CopyOptions copy;
    copy.in_order = GetParam();
    copy.job.executor = executor_.get();
    copy.max_pieces = kJobWidth;
    copy.job.progress = [&](uint64_t, uint64_t) { source->start(); };
    return copy_image(**from, **to, copy);
  }

  const std::unique_ptr<Executor> executor_ = make_executor({});
  std::shared_ptr<Target> target_;
};
INSTANTIATE_TEST_SUITE_P(InOrder, CopyInTurn, ::testing::Bool());

TEST_P(CopyInTurn, PiecesLieInOrderIfTheyShall) {
  if (executor_->width() == 0) GTEST_SKIP() << "one piece at a time";
  ASSERT_EQ(copy(GetParam() ? 7 : 20, absl::OkStatus()), absl::OkStatus());
  const std::vector<uint64_t> offsets = target_->offsets();
  EXPECT_EQ(offsets.size(), 20u);
  if (GetParam()) {
    EXPECT_THAT(offsets, ::testing::WhenSorted(::testing::Eq(offsets)));
  } else {
    EXPECT_NE(offsets[0], 0u);
  }
}

// Others fail before the first piece is read, and their errors are not told.
TEST_P(CopyInTurn, TheErrorIsThatOfTheFirstPiece) {
  if (executor_->width() == 0) GTEST_SKIP() << "one piece at a time";
  const absl::Status status =
      copy(GetParam() ? 7 : 20, absl::DataLossError("no"));
  EXPECT_THAT(status.message(),
              ::testing::HasSubstr("error while writing at byte 0: no"));
  EXPECT_LE(target_->offsets().size(), GetParam() ? 1u : 8u);
}

TEST_P(CopyImages, NothingToCopy) {
  Side source(0, executor_.get());
  Side target(0, executor_.get());
  CopyOptions options;
  options.in_order = GetParam();
  options.job.executor = executor_.get();
  EXPECT_EQ(copy_image(*source.device, *target.device, options),
            absl::OkStatus());
}

}  // namespace
}  // namespace spindle

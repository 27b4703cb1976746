#include "engine/byte_channel.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "engine/errors.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;

std::shared_ptr<MemoryDriver> make_memory(MemoryDriver::Options options) {
  return std::make_shared<MemoryDriver>(std::move(options));
}

Capabilities all_but(std::initializer_list<Capability> removed) {
  Capabilities capabilities = MemoryDriver::Options{}.capabilities;
  for (Capability capability : removed) capabilities.remove(capability);
  return capabilities;
}

absl::Status write(ByteChannel* channel, uint64_t offset,
                   absl::string_view bytes) {
  return channel->write(Purpose::kL2Update, bytes.data(), bytes.size(), offset);
}

std::string read(ByteChannel* channel, uint64_t offset, size_t length) {
  std::string bytes(length, '?');
  const absl::Status status =
      channel->read(Purpose::kL2Load, bytes.data(), length, offset);
  return status.ok() ? bytes : std::string(status.message());
}

std::string zeroes(size_t length) { return std::string(length, '\0'); }

TEST(ByteChannel, ReadsBeyondTheEndAreZeroes) {
  auto memory = make_memory({.length_bytes = 700});
  memory->set_content(0, std::string(700, 'd'));
  ByteChannel channel(memory);
  EXPECT_EQ(read(&channel, 690, 1000), std::string(10, 'd') + zeroes(990));
  EXPECT_EQ(read(&channel, 512, 512), std::string(188, 'd') + zeroes(324));
  EXPECT_EQ(read(&channel, 700, 10), zeroes(10));
  EXPECT_EQ(read(&channel, uint64_t{1} << 60, 10), zeroes(10));
}

TEST(ByteChannel, RangesThatOverflowAreRefused) {
  ByteChannel channel(make_memory({.length_bytes = 512}));
  char byte = 0;
  EXPECT_TRUE(
      absl::IsOutOfRange(channel.read(Purpose::kL2Load, &byte, 1, UINT64_MAX)));
  EXPECT_TRUE(absl::IsOutOfRange(
      channel.write(Purpose::kL2Load, &byte, 1, UINT64_MAX)));
  EXPECT_TRUE(absl::IsOutOfRange(channel.write_zeroes(
      Purpose::kL2Load, ByteRange{UINT64_MAX - 5, 5}, {})));
}

TEST(ByteChannel, GrowsToTheExactByte) {
  for (uint32_t alignment : {512, 4096}) {
    auto memory =
        make_memory({.limits = {.request_alignment_bytes = alignment}});
    ByteChannel channel(memory);
    ASSERT_TRUE(write(&channel, 0, "abc").ok());
    EXPECT_EQ(memory->length_bytes(), 3u);
    ASSERT_TRUE(write(&channel, 5, "xyz").ok());
    EXPECT_EQ(memory->length_bytes(), 8u);
    ASSERT_TRUE(write(&channel, 10001, "end").ok());
    EXPECT_EQ(memory->length_bytes(), 10004u);
    EXPECT_EQ(memory->content({0, 8}), "abc" + zeroes(2) + "xyz");
    EXPECT_EQ(memory->content({10000, 4}), zeroes(1) + "end");
  }
}

TEST(ByteChannel, AnAlignedWriteOverARaggedTailIsNotCutShort) {
  for (uint64_t old_length : {1, 511, 512, 513, 1000, 1023, 1500}) {
    auto memory = make_memory({.length_bytes = old_length});
    ByteChannel channel(memory);
    ASSERT_TRUE(write(&channel, 512, std::string(512, 'w')).ok());
    EXPECT_EQ(memory->length_bytes(), std::max<uint64_t>(old_length, 1024));
    EXPECT_EQ(memory->content({512, 512}), std::string(512, 'w'));
  }
}

// The pieces of a split write that grows must not be cut short either.
TEST(ByteChannel, ASplitWriteOverARaggedTailIsNotCutShort) {
  auto memory =
      make_memory({.length_bytes = 100, .limits = {.max_transfer_bytes = 512}});
  ByteChannel channel(memory);
  ASSERT_TRUE(write(&channel, 0, std::string(4096, 'w')).ok());
  EXPECT_EQ(memory->content(), std::string(4096, 'w'));
}

TEST(ByteChannel, AChildThatCannotGrowIsFull) {
  auto memory = make_memory(
      {.length_bytes = 1000,
       .capabilities = all_but({Capability::kGrows, Capability::kSetLength})});
  ByteChannel channel(memory);
  EXPECT_TRUE(write(&channel, 990, std::string(10, 'w')).ok());
  for (uint64_t offset : {991, 1000, 1024}) {
    const absl::Status status = write(&channel, offset, std::string(10, 'w'));
    EXPECT_TRUE(absl::IsResourceExhausted(status));
    EXPECT_EQ(errno_of(status), ENOSPC);
  }
  EXPECT_EQ(errno_of(write(&channel, 1024, std::string(512, 'w'))), ENOSPC);
  EXPECT_EQ(errno_of(channel.set_length(1001, SetLengthMode::kExact)), ENOSPC);
  EXPECT_EQ(
      errno_of(channel.write_zeroes(Purpose::kPwritevZero, {990, 100}, {})),
      ENOSPC);
  EXPECT_EQ(memory->length_bytes(), 1000u);
  EXPECT_EQ(memory->content({990, 10}), std::string(10, 'w'));
}

TEST(ByteChannel, AReadOnlyChildIsNotWritten) {
  auto memory = make_memory({.length_bytes = 1000, .read_only = true});
  ByteChannel channel(memory);
  EXPECT_EQ(errno_of(write(&channel, 0, "x")), EROFS);
  EXPECT_EQ(errno_of(channel.discard(Purpose::kClusterFree, {0, 512})), EROFS);
  EXPECT_EQ(errno_of(channel.set_length(0, SetLengthMode::kExact)), EROFS);
}

TEST(ByteChannel, AlignedAccessesGoStraightThrough) {
  auto memory = make_memory({.length_bytes = 8192});
  ByteChannel channel(memory);
  ASSERT_TRUE(write(&channel, 512, std::string(1024, 'w')).ok());
  EXPECT_EQ(memory->transfer_count(), 1u);
  EXPECT_EQ(read(&channel, 512, 1024), std::string(1024, 'w'));
  EXPECT_EQ(memory->transfer_count(), 2u);
  // A ragged write reads its two ends and writes once; a ragged read reads
  // once.
  ASSERT_TRUE(write(&channel, 100, std::string(1000, 'r')).ok());
  EXPECT_EQ(memory->transfer_count(), 5u);
  EXPECT_EQ(read(&channel, 100, 1000), std::string(1000, 'r'));
  EXPECT_EQ(memory->transfer_count(), 6u);
}

TEST(ByteChannel, TriesOnlyWhatIsAlignedAndInside) {
  auto memory = make_memory({.length_bytes = 1500});
  memory->set_content(0, std::string(1500, 'd'));
  ByteChannel channel(memory);
  std::string bytes(1536, '?');
  const auto try_read = [&](uint64_t offset, size_t length) {
    return channel.try_read(Purpose::kReadAio, IoVector(bytes.data(), length),
                            offset);
  };
  EXPECT_EQ(try_read(0, 1024), 1024u);
  EXPECT_EQ(bytes.substr(0, 1024), std::string(1024, 'd'));
  EXPECT_EQ(try_read(0, 1000), 0u);
  EXPECT_EQ(try_read(1, 512), 0u);
  EXPECT_EQ(try_read(1024, 512), 0u);
  EXPECT_EQ(try_read(uint64_t{1} << 62, 512), 0u);
  EXPECT_EQ(
      channel.try_write(Purpose::kWriteAio, IoVector(bytes.data(), 512), 512),
      512u);
  EXPECT_EQ(
      channel.try_write(Purpose::kWriteAio, IoVector(bytes.data(), 512), 1024),
      0u);
}

TEST(ByteChannel, TriesNothingPastAnObserver) {
  auto observing =
      std::make_shared<ObservingDriver>(make_memory({.length_bytes = 1024}));
  ByteChannel channel(observing);
  std::string bytes(512, '?');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_EQ(channel.try_read(Purpose::kReadAio, qiov, 0), 0u);
  EXPECT_EQ(channel.try_write(Purpose::kWriteAio, qiov, 0), 0u);
  EXPECT_EQ(observing->total_count(), 0u);
}

TEST(ByteChannel, TheObserverIsAskedOncePerAccess) {
  auto observing =
      std::make_shared<ObservingDriver>(make_memory({.length_bytes = 4096}));
  ByteChannel channel(observing);
  ASSERT_TRUE(write(&channel, 5, std::string(1000, 'w')).ok());
  ASSERT_TRUE(channel.write_zeroes(Purpose::kPwritevZero, {5, 3000}, {}).ok());
  ASSERT_TRUE(channel.discard(Purpose::kClusterFree, {0, 512}).ok());
  ASSERT_TRUE(channel.set_length(5000, SetLengthMode::kExact).ok());
  ASSERT_TRUE(channel.flush().ok());
  EXPECT_EQ(observing->total_count(), 5u);
  EXPECT_EQ(observing->count(Purpose::kL2Update, AccessKind::kWrite), 1u);
  EXPECT_EQ(observing->count(Purpose::kPwritevZero, AccessKind::kWriteZeroes),
            1u);
  EXPECT_EQ(observing->count(Purpose::kClusterFree, AccessKind::kDiscard), 1u);
  EXPECT_EQ(observing->count(Purpose::kSetLength, AccessKind::kSetLength), 1u);
  observing->fail_at({.purpose = Purpose::kL2Update}, EIO);
  EXPECT_EQ(errno_of(write(&channel, 5, "x")), EIO);
}

TEST(ByteChannel, DiscardsOnlyWhatIsAligned) {
  auto memory = make_memory({.length_bytes = 2000});
  memory->set_content(0, std::string(2000, 'd'));
  ByteChannel channel(memory);
  ASSERT_TRUE(channel.discard(Purpose::kClusterFree, {100, 1000}).ok());
  EXPECT_EQ(memory->content(),
            std::string(512, 'd') + zeroes(512) + std::string(976, 'd'));
  ASSERT_TRUE(channel.discard(Purpose::kClusterFree, {1500, 10000}).ok());
  EXPECT_EQ(memory->content({1024, 976}), std::string(512, 'd') + zeroes(464));
  ASSERT_TRUE(channel.discard(Purpose::kClusterFree, {1, 10}).ok());
  ASSERT_TRUE(channel.discard(Purpose::kClusterFree, {5000, 1000}).ok());
}

TEST(ByteChannel, ZeroesAnyRange) {
  const Capabilities without = all_but({Capability::kWriteZeroes});
  for (Capabilities capabilities : {all_but({}), without}) {
    for (const ByteRange range :
         {ByteRange{0, 2048}, ByteRange{100, 50}, ByteRange{100, 1000},
          ByteRange{512, 1000}, ByteRange{1900, 148}, ByteRange{1900, 5000},
          ByteRange{3000, 77}}) {
      auto memory =
          make_memory({.length_bytes = 2040, .capabilities = capabilities});
      memory->set_content(0, std::string(2040, 'd'));
      std::string want(std::max<uint64_t>(2040, range.end()), '\0');
      std::fill_n(want.begin(), 2040, 'd');
      std::fill_n(want.begin() + range.offset, range.length, '\0');
      ByteChannel channel(memory);
      ASSERT_TRUE(channel.write_zeroes(Purpose::kPwritevZero, range, {}).ok());
      EXPECT_EQ(memory->content(), want) << range.offset << "+" << range.length;
    }
  }
}

TEST(ByteChannel, ZeroingWithoutFallbackIsRefusedWhereItWouldWrite) {
  auto memory = make_memory(
      {.length_bytes = 4096,
       .capabilities = all_but({Capability::kWriteZeroesNoFallback})});
  ByteChannel channel(memory);
  EXPECT_TRUE(absl::IsUnimplemented(channel.write_zeroes(
      Purpose::kPwritevZero, {0, 4096}, {.no_fallback = true})));
  EXPECT_TRUE(channel.write_zeroes(Purpose::kPwritevZero, {0, 4096}, {}).ok());
}

TEST(ByteChannel, SaysWhatItKnowsOfBlocks) {
  auto memory = make_memory({.length_bytes = 1 << 17});
  memory->set_content(0, "data");
  ByteChannel channel(memory);
  auto status = channel.block_status({0, 1 << 17});
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data);
  EXPECT_EQ(status->length, 65536u);
  status = channel.block_status({1 << 17, 100});
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->zero);
  EXPECT_TRUE(status->end_of_image);
  ByteChannel plain(make_memory({.length_bytes = 100, .capabilities = {}}));
  status = plain.block_status({10, 200});
  ASSERT_TRUE(status.ok());
  EXPECT_TRUE(status->data);
  EXPECT_EQ(status->length, 90u);
  EXPECT_TRUE(status->end_of_image);
}

TEST(ByteChannel, GrowOnlyNeverShrinks) {
  auto memory = make_memory({.length_bytes = 1000});
  ByteChannel channel(memory);
  ASSERT_TRUE(channel.set_length(500, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(memory->length_bytes(), 1000u);
  ASSERT_TRUE(channel.set_length(500, SetLengthMode::kExact).ok());
  EXPECT_EQ(memory->length_bytes(), 500u);
  ASSERT_TRUE(channel.set_length(501, SetLengthMode::kGrowOnly).ok());
  EXPECT_EQ(memory->length_bytes(), 501u);
}

// Stops its first write until it is told to go on.
class PausingDriver : public MemoryDriver {
 public:
  using MemoryDriver::MemoryDriver;
  absl::Status write(const IoVector& qiov, Sector sector) override {
    if (write_count.fetch_add(1) == 0) {
      reached.Notify();
      resume.WaitForNotification();
    }
    return MemoryDriver::write(qiov, sector);
  }

  std::atomic<int> write_count{0};
  absl::Notification reached;
  absl::Notification resume;
};

// A read-modify-write has read the bytes around its own and is about to put
// them back: nobody may write to those sectors now.
TEST(ByteChannel, AnAlignedWriteWaitsForARaggedOneInItsSectors) {
  auto memory = std::make_shared<PausingDriver>(
      MemoryDriver::Options{.length_bytes = 4096});
  ByteChannel channel(memory);
  std::thread ragged([&] { EXPECT_TRUE(write(&channel, 600, "ragged").ok()); });
  memory->reached.WaitForNotification();
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_EQ(channel.try_write(Purpose::kWriteAio, qiov, 512), 0u);
  EXPECT_EQ(channel.try_write(Purpose::kWriteAio, qiov, 1024), 512u);
  std::thread aligned(
      [&] { EXPECT_TRUE(channel.write(Purpose::kWriteAio, qiov, 512).ok()); });
  // Time enough for it to do the wrong thing; none is needed for the right one.
  for (int i = 0; i < 1000 && memory->write_count < 3; ++i) {
    std::this_thread::yield();
  }
  memory->resume.Notify();
  ragged.join();
  aligned.join();
  EXPECT_EQ(memory->content({512, 512}), bytes);
}

TEST(ByteChannel, ARaggedWriteWaitsForAnAlignedOneInItsSectors) {
  auto memory = std::make_shared<PausingDriver>(
      MemoryDriver::Options{.length_bytes = 4096});
  ByteChannel channel(memory);
  std::string bytes(512, 'a');
  const IoVector qiov(bytes.data(), bytes.size());
  std::thread aligned(
      [&] { EXPECT_TRUE(channel.write(Purpose::kWriteAio, qiov, 512).ok()); });
  memory->reached.WaitForNotification();
  std::thread ragged([&] { EXPECT_TRUE(write(&channel, 600, "ragged").ok()); });
  for (int i = 0; i < 1000 && memory->write_count < 2; ++i) {
    std::this_thread::yield();
  }
  memory->resume.Notify();
  aligned.join();
  ragged.join();
  EXPECT_EQ(memory->content({512, 512}),
            std::string(88, 'a') + "ragged" + std::string(418, 'a'));
}

// ---- Against a model of bytes -----------------------------------------------

struct Shape {
  uint32_t request_alignment;
  uint32_t memory_alignment;
  uint64_t max_transfer;
  uint32_t max_segments;
};

class ByteChannelModel : public ::testing::TestWithParam<Shape> {
 protected:
  DriverLimits limits() const {
    DriverLimits limits;
    limits.request_alignment_bytes = GetParam().request_alignment;
    limits.memory_alignment_bytes = GetParam().memory_alignment;
    limits.max_transfer_bytes = GetParam().max_transfer;
    limits.max_segments = GetParam().max_segments;
    return limits;
  }
};

// Memory for one request, cut at random places.
IoVector cut(std::string* bytes, std::mt19937_64* random) {
  IoVector result;
  size_t at = 0;
  while (at < bytes->size()) {
    size_t length = 1 + (*random)() % (bytes->size() - at);
    if ((*random)() % 4 == 0) length = bytes->size() - at;
    result.append(IoVector(bytes->data() + at, length));
    at += length;
  }
  return result;
}

TEST_P(ByteChannelModel, BehavesAsAByteArray) {
  const uint64_t seed = testing::test_seed();
  std::mt19937_64 random(seed);
  auto memory = make_memory({.length_bytes = 777, .limits = limits()});
  ByteChannel channel(memory);
  std::string model(777, '\0');
  constexpr uint64_t kSpace = 40000;
  for (int step = 0; step < 3000; ++step) {
    const bool round = random() % 3 == 0;
    const uint64_t grain = round ? 512 << (random() % 4) : 1;
    const uint64_t offset = random() % (kSpace / grain) * grain;
    const uint64_t length = (1 + random() % (9000 / grain)) * grain;
    const uint64_t end = offset + length;
    switch (random() % 8) {
      case 0:
      case 1:
      case 2: {
        std::string bytes(length, static_cast<char>('a' + random() % 26));
        ASSERT_TRUE(
            channel.write(Purpose::kWriteAio, cut(&bytes, &random), offset)
                .ok());
        if (model.size() < end) model.resize(end);
        model.replace(offset, length, bytes);
        break;
      }
      case 3: {
        ASSERT_TRUE(
            channel.write_zeroes(Purpose::kPwritevZero, {offset, length}, {})
                .ok());
        if (model.size() < end) model.resize(end);
        std::fill_n(model.begin() + offset, length, '\0');
        break;
      }
      case 4: {
        const bool exact = random() % 4 == 0;
        const auto mode =
            exact ? SetLengthMode::kExact : SetLengthMode::kGrowOnly;
        ASSERT_TRUE(channel.set_length(end, mode).ok());
        if (exact || end > model.size()) model.resize(end);
        break;
      }
      default: {
        std::string got(length, '?');
        ASSERT_TRUE(
            channel.read(Purpose::kReadAio, cut(&got, &random), offset).ok());
        std::string want(length, '\0');
        if (offset < model.size()) {
          const std::string stored = model.substr(offset, length);
          want.replace(0, stored.size(), stored);
        }
        ASSERT_EQ(got, want) << "step " << step << " seed " << seed;
      }
    }
    ASSERT_EQ(memory->length_bytes(), model.size())
        << "step " << step << " seed " << seed;
  }
  EXPECT_EQ(memory->content(), model);
}

// Each thread owns every n-th stretch of odd length, so that neighbours share
// sectors, and some threads write aligned blocks among them.  Nobody's bytes
// may be lost.
TEST_P(ByteChannelModel, NeighboursInOneSectorLoseNothing) {
  const uint64_t seed = testing::test_seed();
  constexpr int kThreads = 6;
  constexpr uint64_t kStretch = 97;
  constexpr uint64_t kStretches = 240;
  constexpr uint64_t kBlock = 8192;  // aligned at every shape
  constexpr uint64_t kSpace = kStretch * kStretches;
  // Blocks at both sides of the stretches share their first and last sectors'
  // neighbourhood; the file starts empty, so everybody also grows it.
  auto memory = make_memory({.limits = limits()});
  ByteChannel channel(memory);
  std::vector<std::string> last(kStretches);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int round = 0; round < 400; ++round) {
        const uint64_t stretch =
            random() % (kStretches / kThreads) * kThreads + t;
        std::string bytes(kStretch, static_cast<char>('a' + random() % 26));
        ASSERT_TRUE(channel
                        .write(Purpose::kWriteAio, cut(&bytes, &random),
                               kBlock + stretch * kStretch)
                        .ok());
        last[stretch] = bytes;
      }
    });
  }
  std::string block(kBlock, 'A');
  threads.emplace_back([&] {
    for (int round = 0; round < 400; ++round) {
      std::string bytes = block;
      ASSERT_TRUE(channel
                      .write(Purpose::kWriteAio,
                             IoVector(bytes.data(), bytes.size()), 0)
                      .ok());
    }
  });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(memory->content({0, kBlock}), block);
  std::string want;
  for (const std::string& stretch : last) {
    want += stretch.empty() ? zeroes(kStretch) : stretch;
  }
  want.resize(std::min<uint64_t>(kSpace, memory->length_bytes() - kBlock));
  EXPECT_EQ(memory->content({kBlock, want.size()}), want) << "seed " << seed;
}

// An aligned write and ragged ones within the same sectors: whoever comes last
// wins a byte, but the aligned writer's bytes that no ragged writer touches
// must never fall back to what a read-modify-write had read before.
TEST_P(ByteChannelModel, AlignedWritesAreNotUndoneByRaggedOnes) {
  const uint64_t unit = GetParam().request_alignment;
  auto memory = make_memory({.length_bytes = 4 * unit, .limits = limits()});
  ByteChannel channel(memory);
  std::atomic<bool> stop{false};
  std::vector<std::thread> ragged;
  for (int t = 0; t < 3; ++t) {
    ragged.emplace_back([&, t] {
      while (!stop) {
        ASSERT_TRUE(write(&channel, t * unit + unit - 5, "0123456789").ok());
      }
    });
  }
  for (int round = 0; round < 300; ++round) {
    const char letter = static_cast<char>('a' + round % 26);
    ASSERT_TRUE(write(&channel, 0, std::string(4 * unit, letter)).ok());
    const std::string got = read(&channel, 0, 4 * unit);
    for (uint64_t i = 0; i < got.size(); ++i) {
      const bool touched =
          (i + 5) % unit < 10 && i >= unit - 5 && i < 3 * unit + 5;
      if (touched) continue;
      ASSERT_EQ(got[i], letter) << "byte " << i;
    }
  }
  stop = true;
  for (std::thread& thread : ragged) thread.join();
}

INSTANTIATE_TEST_SUITE_P(
    Alignments, ByteChannelModel,
    ::testing::Values(Shape{512, 1, 0, 0}, Shape{4096, 1, 0, 0},
                      Shape{512, 512, 0, 0}, Shape{4096, 512, 0, 0},
                      Shape{4096, 4096, 8192, 0}, Shape{512, 1, 1024, 2},
                      Shape{512, 1, 0, 1}),
    [](const auto& info) {
      const Shape& shape = info.param;
      return "Request" + std::to_string(shape.request_alignment) + "Memory" +
             std::to_string(shape.memory_alignment) + "Max" +
             std::to_string(shape.max_transfer) + "Segments" +
             std::to_string(shape.max_segments);
    });

}  // namespace
}  // namespace spindle

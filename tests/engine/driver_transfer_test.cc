#include "engine/driver_transfer.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/checked_math.h"
#include "gtest/gtest.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Direction = DriverTransfer::Direction;
using testing::MemoryDriver;

constexpr uint64_t kLength = 4 << 20;

struct Call {
  uint64_t offset = 0;
  uint64_t length = 0;
  size_t segments = 0;
  bool operator==(const Call&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Call& call) {
  return out << "{" << call.offset << ", " << call.length << ", "
             << call.segments << "}";
}

// Remembers its calls, and complains about those beyond its limits.
class StrictDriver : public MemoryDriver {
 public:
  explicit StrictDriver(DriverLimits limits, uint64_t length_bytes = kLength)
      : MemoryDriver({.length_bytes = length_bytes,
                      .limits = limits,
                      .capabilities = {}}),
        limits_(limits) {}

  absl::Status read(const IoVector& qiov, Sector sector) override {
    const absl::Status status = note(qiov, sector);
    return status.ok() ? MemoryDriver::read(qiov, sector) : status;
  }
  absl::Status write(const IoVector& qiov, Sector sector) override {
    const absl::Status status = note(qiov, sector);
    return status.ok() ? MemoryDriver::write(qiov, sector) : status;
  }
  DriverLimits limits() const override {
    absl::MutexLock lock(&mutex_);
    return limits_;
  }

  void set_limits(const DriverLimits& limits) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    limits_ = limits;
  }
  // Calls that reach to `offset` or beyond fail.
  void fail_beyond(uint64_t offset) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    fail_beyond_ = offset;
  }
  std::vector<Call> take_calls() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    std::vector<Call> calls;
    calls.swap(calls_);
    return calls;
  }

 private:
  absl::Status note(const IoVector& qiov, Sector sector)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    const uint64_t offset = sector.byte_offset();
    const uint64_t length = qiov.length_bytes();
    EXPECT_GT(length, 0u);
    EXPECT_TRUE(is_aligned(offset | length, limits_.request_alignment_bytes));
    EXPECT_TRUE(qiov.is_aligned(limits_.memory_alignment_bytes));
    if (limits_.max_transfer_bytes != 0) {
      EXPECT_LE(length, limits_.max_transfer_bytes);
    }
    if (limits_.max_segments != 0) {
      EXPECT_LE(qiov.segment_count(), limits_.max_segments);
    }
    calls_.push_back({offset, length, qiov.segment_count()});
    return offset + length > fail_beyond_ ? absl::DataLossError("scratched")
                                          : absl::OkStatus();
  }

  mutable absl::Mutex mutex_;
  DriverLimits limits_ ABSL_GUARDED_BY(mutex_);
  uint64_t fail_beyond_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  std::vector<Call> calls_ ABSL_GUARDED_BY(mutex_);
};

std::string pattern(size_t bytes, int seed = 1) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i)
    text[i] = static_cast<char>('a' + (i * 7 + i / 512 + seed) % 26);
  return text;
}

// Memory at a page, or a few bytes behind one.
class Memory {
 public:
  explicit Memory(size_t bytes, size_t skew = 0)
      : buffer_(bytes + skew, 4096), skew_(skew) {}

  char* data() const { return reinterpret_cast<char*>(buffer_.data()) + skew_; }
  size_t size() const { return buffer_.size() - skew_; }
  std::string text() const { return std::string(data(), size()); }
  void set(const std::string& text) const {
    std::memcpy(data(), text.data(), text.size());
  }
  IoVector vector() const { return IoVector(data(), size()); }
  IoVector in_segments_of(size_t bytes) const {
    std::vector<iovec> segments;
    for (size_t at = 0; at < size(); at += bytes) {
      segments.push_back({data() + at, std::min(bytes, size() - at)});
    }
    return IoVector(absl::MakeConstSpan(segments));
  }

 private:
  const AlignedBuffer buffer_;
  const size_t skew_;
};

using Calls = std::vector<Call>;

// ---- Limits -----------------------------------------------------------------

TEST(CheckLimits, AcceptsWhatDriversSay) {
  EXPECT_TRUE(DriverTransfer::check_limits({}).ok());
  EXPECT_TRUE(
      DriverTransfer::check_limits({.request_alignment_bytes = 4096,
                                    .memory_alignment_bytes = 512,
                                    .optimal_transfer_bytes = 65536,
                                    .max_transfer_bytes = 4096,
                                    .max_segments = 1,
                                    .discard_alignment_bytes = 65536,
                                    .write_zeroes_alignment_bytes = 4096})
          .ok());
}

TEST(CheckLimits, RefusesWhatCannotBeAndSaysWhich) {
  struct BadCase {
    DriverLimits limits;
    absl::string_view name;
    uint64_t value;
  };
  const BadCase cases[] = {
      {{.request_alignment_bytes = 0}, "request_alignment_bytes", 0},
      {{.request_alignment_bytes = 256}, "request_alignment_bytes", 256},
      {{.request_alignment_bytes = 1000}, "request_alignment_bytes", 1000},
      {{.memory_alignment_bytes = 0}, "memory_alignment_bytes", 0},
      {{.memory_alignment_bytes = 3}, "memory_alignment_bytes", 3},
      {{.memory_alignment_bytes = 1024}, "memory_alignment_bytes", 1024},
      {{.max_transfer_bytes = 511}, "max_transfer_bytes", 511},
      {{.request_alignment_bytes = 4096, .max_transfer_bytes = 4095},
       "max_transfer_bytes",
       4095},
      {{.discard_alignment_bytes = 0}, "discard_alignment_bytes", 0},
      {{.discard_alignment_bytes = 1536}, "discard_alignment_bytes", 1536},
      {{.discard_alignment_bytes = 256}, "discard_alignment_bytes", 256},
      {{.write_zeroes_alignment_bytes = 0}, "write_zeroes_alignment_bytes", 0},
      {{.write_zeroes_alignment_bytes = 1536},
       "write_zeroes_alignment_bytes",
       1536},
      {{.write_zeroes_alignment_bytes = 256},
       "write_zeroes_alignment_bytes",
       256},
  };
  for (const BadCase& bad : cases) {
    const absl::Status status = DriverTransfer::check_limits(bad.limits);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << bad.name << bad.value;
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  absl::StrCat(bad.name, " is ", bad.value)))
        << status;
  }
}

TEST(Fits, LooksAtLengthSegmentsAndMemory) {
  StrictDriver driver({.memory_alignment_bytes = 512,
                       .max_transfer_bytes = 4096,
                       .max_segments = 2});
  DriverTransfer transfers(&driver);
  const Memory memory(8192);
  const Memory skewed(8192, 8);
  EXPECT_TRUE(transfers.fits(IoVector(memory.data(), 4096)));
  EXPECT_FALSE(transfers.fits(IoVector(memory.data(), 4608)));
  EXPECT_FALSE(transfers.fits(IoVector(skewed.data(), 4096)));
  EXPECT_TRUE(
      transfers.fits({{memory.data(), 512}, {memory.data() + 1024, 512}}));
  EXPECT_FALSE(
      transfers.fits({{memory.data(), 256}, {memory.data() + 512, 256}}));
  EXPECT_FALSE(transfers.fits({{memory.data(), 512},
                               {memory.data() + 1024, 512},
                               {memory.data() + 4096, 512}}));
}

TEST(Limits, AreAskedForAgainByRefreshOnly) {
  StrictDriver driver({});
  DriverTransfer transfers(&driver);
  const Memory memory(4096);
  driver.set_limits({.max_transfer_bytes = 1024});
  EXPECT_TRUE(transfers.fits(memory.vector()));
  transfers.refresh();
  EXPECT_EQ(transfers.limits().max_transfer_bytes, 1024u);
  EXPECT_FALSE(transfers.fits(memory.vector()));
  EXPECT_TRUE(transfers.transfer(Direction::kRead, memory.vector(), 0).ok());
  EXPECT_EQ(driver.take_calls().size(), 4u);
}

TEST(TakeBuffer, GivesWhatTheDriverCanTake) {
  StrictDriver driver(
      {.request_alignment_bytes = 16384, .memory_alignment_bytes = 16384});
  DriverTransfer transfers(&driver);
  for (size_t bytes : {size_t{512}, size_t{1} << 20}) {
    const AlignedBufferPool::Lease buffer = transfers.take_buffer(bytes);
    EXPECT_GE(buffer.size(), bytes);
    EXPECT_TRUE(is_aligned(reinterpret_cast<uintptr_t>(buffer.data()), 16384));
  }
}

// ---- Splitting --------------------------------------------------------------

TEST(Splitting, WhatFitsGoesThroughAsItIs) {
  // Also across the driver's best boundaries.
  StrictDriver driver(
      {.optimal_transfer_bytes = 4096, .max_transfer_bytes = 65536});
  DriverTransfer transfers(&driver);
  const Memory memory(65536, 1);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(
      transfers.transfer(Direction::kWrite, memory.in_segments_of(8192), 512)
          .ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{512, 65536, 8}}));
  EXPECT_EQ(driver.content({512, 65536}), memory.text());
}

TEST(Splitting, AtTheLongestTransfer) {
  // Not a multiple of the alignment: rounded down.
  StrictDriver driver(
      {.request_alignment_bytes = 1024, .max_transfer_bytes = 4000});
  DriverTransfer transfers(&driver);
  const Memory memory(8192);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(
      transfers.transfer(Direction::kWrite, memory.vector(), 1024).ok());
  EXPECT_EQ(driver.take_calls(),
            (Calls{{1024, 3072, 1}, {4096, 3072, 1}, {7168, 2048, 1}}));
  EXPECT_EQ(driver.content({1024, 8192}), memory.text());
}

TEST(Splitting, AtTheMostSegments) {
  StrictDriver driver({.max_segments = 3});
  DriverTransfer transfers(&driver);
  driver.set_content(0, pattern(kLength));
  const Memory memory(7 * 1024);
  EXPECT_TRUE(
      transfers.transfer(Direction::kRead, memory.in_segments_of(1024), 512)
          .ok());
  EXPECT_EQ(driver.take_calls(),
            (Calls{{512, 3072, 3}, {3584, 3072, 3}, {6656, 1024, 1}}));
  EXPECT_EQ(memory.text(), driver.content({512, memory.size()}));
}

// Three segments of 700 bytes hold four sectors, and a part of the fifth.
TEST(Splitting, AtSectorsThatSegmentsDoNotEndAt) {
  StrictDriver driver({.max_segments = 3});
  DriverTransfer transfers(&driver);
  const Memory memory(7 * 512);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(
      transfers.transfer(Direction::kWrite, memory.in_segments_of(700), 0)
          .ok());
  EXPECT_EQ(driver.take_calls(),
            (Calls{{0, 2048, 3}, {2048, 1024, 3}, {3072, 512, 2}}));
  EXPECT_EQ(driver.content({0, memory.size()}), memory.text());
}

TEST(Splitting, AtTheBestBoundaries) {
  StrictDriver driver(
      {.optimal_transfer_bytes = 8192, .max_transfer_bytes = 12288});
  DriverTransfer transfers(&driver);
  const Memory memory(32768);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(transfers.transfer(Direction::kWrite, memory.vector(), 512).ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{512, 7680, 1},
                                        {8192, 8192, 1},
                                        {16384, 8192, 1},
                                        {24576, 8704, 1}}));
  EXPECT_EQ(driver.content({512, memory.size()}), memory.text());
}

TEST(Splitting, IgnoresBoundariesThatItCannotReach) {
  StrictDriver driver(
      {.optimal_transfer_bytes = 65536, .max_transfer_bytes = 4096});
  DriverTransfer transfers(&driver);
  const Memory memory(8192);
  EXPECT_TRUE(transfers.transfer(Direction::kRead, memory.vector(), 4096).ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{4096, 4096, 1}, {8192, 4096, 1}}));
}

TEST(Splitting, StopsAtTheFirstError) {
  StrictDriver driver({.max_transfer_bytes = 1024});
  DriverTransfer transfers(&driver);
  const Memory memory(4096);
  memory.set(pattern(memory.size()));
  driver.fail_beyond(2048);
  for (Direction direction : {Direction::kWrite, Direction::kRead}) {
    EXPECT_EQ(transfers.transfer(direction, memory.vector(), 0),
              absl::DataLossError("scratched"));
    EXPECT_EQ(driver.take_calls(),
              (Calls{{0, 1024, 1}, {1024, 1024, 1}, {2048, 1024, 1}}));
  }
  EXPECT_EQ(driver.content({0, 2048}), memory.text().substr(0, 2048));
  EXPECT_EQ(driver.content({2048, 2048}), std::string(2048, '\0'));
}

// ---- Bouncing ---------------------------------------------------------------

TEST(Bouncing, OfMemoryThatIsNotAligned) {
  StrictDriver driver({.memory_alignment_bytes = 512});
  DriverTransfer transfers(&driver);
  const Memory from(8192, 1);
  from.set(pattern(from.size()));
  EXPECT_TRUE(transfers.transfer(Direction::kWrite, from.vector(), 512).ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{512, 8192, 1}}));
  EXPECT_EQ(driver.content({512, 8192}), from.text());
  const Memory into(8192, 3);
  EXPECT_TRUE(
      transfers.transfer(Direction::kRead, into.in_segments_of(1000), 512)
          .ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{512, 8192, 1}}));
  EXPECT_EQ(into.text(), from.text());
}

TEST(Bouncing, OfSegmentsTooShortForASector) {
  StrictDriver driver({.max_segments = 4});
  DriverTransfer transfers(&driver);
  const Memory memory(2048);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(
      transfers.transfer(Direction::kWrite, memory.in_segments_of(100), 0)
          .ok());
  EXPECT_EQ(driver.take_calls(), (Calls{{0, 2048, 1}}));
  EXPECT_EQ(driver.content({0, 2048}), memory.text());
}

// A megabyte does not bounce through a buffer of a megabyte.
TEST(Bouncing, InPiecesOfABufferAtTheBestBoundaries) {
  StrictDriver driver(
      {.memory_alignment_bytes = 512, .optimal_transfer_bytes = 65536});
  DriverTransfer transfers(&driver);
  const Memory memory(1 << 20, 16);
  memory.set(pattern(memory.size()));
  EXPECT_TRUE(
      transfers.transfer(Direction::kWrite, memory.vector(), 4096).ok());
  const Calls calls = driver.take_calls();
  uint64_t at = 4096;
  for (const Call& call : calls) {
    EXPECT_EQ(call.offset, at);
    EXPECT_LE(call.length, 128u << 10);
    at += call.length;
    EXPECT_TRUE(at % 65536 == 0 || &call == &calls.back()) << at;
  }
  EXPECT_EQ(at, 4096u + (1 << 20));
  EXPECT_EQ(driver.content({4096, memory.size()}), memory.text());
}

TEST(Bouncing, KeepsToTheLongestTransfer) {
  StrictDriver driver(
      {.memory_alignment_bytes = 512, .max_transfer_bytes = 1536});
  DriverTransfer transfers(&driver);
  const Memory memory(4096, 1);
  EXPECT_TRUE(transfers.transfer(Direction::kRead, memory.vector(), 0).ok());
  EXPECT_EQ(driver.take_calls(),
            (Calls{{0, 1536, 1}, {1536, 1536, 1}, {3072, 1024, 1}}));
}

TEST(Bouncing, AFailedReadLeavesTheMemoryAlone) {
  StrictDriver driver({.memory_alignment_bytes = 512});
  DriverTransfer transfers(&driver);
  driver.fail_beyond(0);
  const Memory memory(1024, 1);
  memory.set(std::string(1024, 'm'));
  EXPECT_TRUE(absl::IsDataLoss(
      transfers.transfer(Direction::kRead, memory.vector(), 0)));
  EXPECT_EQ(memory.text(), std::string(1024, 'm'));
}

// ---- The end of the image ---------------------------------------------------

TEST(EndOfImage, LastPartialBlockReadsZeroesAndWritesStop) {
  constexpr uint64_t kOdd = 3 * 4096 + 100;
  // As it is, in pieces, and through a buffer.
  for (size_t skew : {0, 0, 1}) {
    for (uint64_t max_transfer : {0, 4096}) {
      StrictDriver driver({.request_alignment_bytes = 4096,
                           .memory_alignment_bytes = 512,
                           .max_transfer_bytes = max_transfer},
                          kOdd);
      DriverTransfer transfers(&driver);
      const std::string old = pattern(kOdd);
      driver.set_content(0, old);
      const Memory memory(8192, skew);
      memory.set(std::string(8192, 'm'));
      EXPECT_TRUE(
          transfers.transfer(Direction::kRead, memory.vector(), 8192).ok());
      EXPECT_EQ(memory.text(),
                old.substr(8192) + std::string(4096 - 100, '\0'));
      memory.set(std::string(8192, 'n'));
      EXPECT_TRUE(
          transfers.transfer(Direction::kWrite, memory.vector(), 8192).ok());
      EXPECT_EQ(driver.length_bytes(), kOdd);
      EXPECT_EQ(driver.content(),
                old.substr(0, 8192) + std::string(kOdd - 8192, 'n'));
    }
  }
}

// ---- Zeroes -----------------------------------------------------------------

TEST(WriteZeroesByHand, WritesExactlyTheRange) {
  const DriverLimits kinds[] = {
      {},
      {.max_transfer_bytes = 100 << 10},
      {.max_segments = 3},
      {.memory_alignment_bytes = 512},
      {.request_alignment_bytes = 4096, .optimal_transfer_bytes = 65536},
  };
  for (const DriverLimits& limits : kinds) {
    const uint64_t unit = limits.request_alignment_bytes;
    StrictDriver driver(limits);
    DriverTransfer transfers(&driver);
    const std::string old = pattern(kLength);
    for (uint64_t length : {unit, uint64_t{65536} + unit, uint64_t{1} << 20,
                            (uint64_t{2} << 20) + unit}) {
      driver.set_content(0, old);
      EXPECT_TRUE(transfers.write_zeroes_by_hand(unit, length).ok());
      std::string expected = old;
      std::fill_n(expected.begin() + unit, length, '\0');
      EXPECT_TRUE(driver.content() == expected) << length;
    }
  }
}

TEST(WriteZeroesByHand, OfNothingCallsNobody) {
  StrictDriver driver({});
  DriverTransfer transfers(&driver);
  EXPECT_TRUE(transfers.write_zeroes_by_hand(512, 0).ok());
  EXPECT_EQ(driver.take_calls(), Calls{});
}

TEST(WriteZeroesByHand, StopsAtTheFirstError) {
  StrictDriver driver({.max_transfer_bytes = 1 << 20});
  DriverTransfer transfers(&driver);
  driver.fail_beyond(1 << 20);
  EXPECT_TRUE(absl::IsDataLoss(transfers.write_zeroes_by_hand(0, 3 << 20)));
  EXPECT_EQ(driver.take_calls().size(), 2u);
}

// ---- At random --------------------------------------------------------------

class RandomTransfers {
 public:
  explicit RandomTransfers(uint64_t seed) : random_(seed) {}

  uint64_t below(uint64_t bound) { return random_() % bound; }
  uint64_t power_of_two(int from, int to) {
    return uint64_t{1} << (from + below(to - from + 1));
  }
  DriverLimits limits() {
    DriverLimits limits;
    const int request_bits = static_cast<int>(9 + below(4));
    limits.request_alignment_bytes = uint32_t{1} << request_bits;
    limits.memory_alignment_bytes = power_of_two(0, request_bits);
    if (below(2) == 0) limits.optimal_transfer_bytes = power_of_two(10, 17);
    if (below(2) == 0) {
      limits.max_transfer_bytes =
          limits.request_alignment_bytes + below(200000);
    }
    if (below(2) == 0) limits.max_segments = 1 + below(20);
    return limits;
  }
  // `length_bytes` bytes at odd places of `memory`, in odd pieces.
  IoVector vector(const Memory& memory, uint64_t length_bytes) {
    std::vector<iovec> segments;
    const uint64_t unit = power_of_two(0, 12);
    uint64_t at = 0;
    while (length_bytes > 0) {
      const uint64_t piece =
          std::min<uint64_t>(length_bytes, unit * (1 + below(64)));
      segments.push_back({memory.data() + at, piece});
      at += piece + (below(2) == 0 ? 0 : unit);
      length_bytes -= piece;
    }
    return IoVector(absl::MakeConstSpan(segments));
  }

 private:
  std::mt19937_64 random_;
};

// StrictDriver looks after the limits; here, that every byte moves once.
TEST(Random, TransfersMoveEveryByteOnceInOrder) {
  RandomTransfers random(testing::test_seed());
  // Gaps may be as long as what they separate.
  const Memory memory(2 << 20);
  for (int round = 0; round < 400; ++round) {
    const DriverLimits limits = random.limits();
    ASSERT_TRUE(DriverTransfer::check_limits(limits).ok());
    const uint64_t unit = limits.request_alignment_bytes;
    StrictDriver driver(limits, 1 << 20);
    DriverTransfer transfers(&driver);
    const uint64_t length = unit * (1 + random.below(400000 / unit));
    const uint64_t offset = unit * random.below(500000 / unit);
    const IoVector qiov = random.vector(memory, length);
    const std::string text = pattern(length, round);
    qiov.copy_from(0, text.data(), length);
    ASSERT_TRUE(transfers.transfer(Direction::kWrite, qiov, offset).ok());
    EXPECT_TRUE(driver.content({offset, length}) == text);
    uint64_t at = offset;
    for (const Call& call : driver.take_calls()) {
      ASSERT_EQ(call.offset, at);
      at += call.length;
    }
    ASSERT_EQ(at, offset + length);
    const IoVector into = random.vector(memory, length);
    into.fill(0);
    ASSERT_TRUE(transfers.transfer(Direction::kRead, into, offset).ok());
    std::string found(length, '\0');
    into.copy_to(0, found.data(), length);
    ASSERT_TRUE(found == text);
  }
}

// The buffers are shared, their content is not.
TEST(Threads, BounceSideBySide) {
  const uint64_t seed = testing::test_seed();
  StrictDriver driver(
      {.memory_alignment_bytes = 512, .max_transfer_bytes = 65536});
  DriverTransfer transfers(&driver);
  constexpr uint64_t kEach = 256 << 10;
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(seed + i);
      for (int round = 0; round < 40; ++round) {
        const uint64_t length = 512 * (1 + random() % (kEach / 512));
        const Memory from(length, 1 + random() % 511);
        const Memory into(length, 1 + random() % 511);
        from.set(pattern(length, static_cast<int>(i * 40 + round)));
        ASSERT_TRUE(
            transfers.transfer(Direction::kWrite, from.vector(), i * kEach)
                .ok());
        ASSERT_TRUE(
            transfers.transfer(Direction::kRead, into.vector(), i * kEach)
                .ok());
        ASSERT_TRUE(into.text() == from.text());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace spindle

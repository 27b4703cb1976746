// A disk becomes longer and shorter beside requests: what is below the shortest
// length keeps its data, and above it nothing old comes back.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;

constexpr uint64_t kCluster = 4096;
// The disk is never shorter, and never longer than four times that.
constexpr uint64_t kBase = 64 * kCluster;
constexpr uint64_t kLongest = 4 * kBase;
constexpr int kWriters = 3;  // of either kind
constexpr int kResizes = 150;

class Stress {
 public:
  explicit Stress(BlockDriver* driver, uint64_t seed)
      : driver_(*driver), seed_(seed) {}

  void run();

 private:
  // What a sector above the base may hold: zeroes, or the number of shrinks
  // that were over when its writer began.
  absl::Status write_above(ByteRange range, uint64_t shrinks);
  void write_and_read_above(uint64_t thread);
  void write_and_read_below(uint64_t thread);
  void resize(std::mt19937_64* random);
  void check_above(ByteRange range);

  BlockDriver& driver_;
  const uint64_t seed_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> shrinks_{0};
  // With which number each writer above the base is at work.
  std::array<std::atomic<uint64_t>, kWriters> at_work_{};
};

absl::Status Stress::write_above(ByteRange range, uint64_t shrinks) {
  std::vector<uint64_t> words(range.length / sizeof(uint64_t), shrinks + 1);
  return driver_.write(
      IoVector(reinterpret_cast<uint8_t*>(words.data()), range.length),
      Sector::from_byte_offset(range.offset));
}

void Stress::check_above(ByteRange range) {
  const uint64_t shrinks = shrinks_.load();
  const auto content = testing::read_bytes(driver_, range);
  if (absl::IsOutOfRange(content.status())) return;
  ASSERT_TRUE(content.ok()) << content.status();
  for (uint64_t at = 0; at < range.length; at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, content->data() + at, sizeof(word));
    // A writer from before the last shrink but one is gone.
    ASSERT_TRUE(word == 0 || word + 1 >= shrinks)
        << "at " << range.offset + at << ": of " << word - 1 << ", and there "
        << "were " << shrinks << " shrinks";
  }
}

void Stress::write_and_read_above(uint64_t thread) {
  std::mt19937_64 random(seed_ + thread);
  while (!stop_ && !::testing::Test::HasFailure()) {
    const uint64_t sectors = (kLongest - kBase) / 512;
    const uint64_t first = random() % sectors;
    const uint64_t count =
        std::min<uint64_t>(1 + random() % 40, sectors - first);
    const ByteRange range{kBase + first * 512, count * 512};
    uint64_t shrinks = 0;
    do {
      shrinks = shrinks_.load();
      at_work_[thread].store(shrinks);
    } while (shrinks_.load() != shrinks);
    const uint64_t dice = random() % 8;
    const absl::Status status = dice == 0   ? driver_.discard(range)
                                : dice == 1 ? driver_.write_zeroes(range, {})
                                            : write_above(range, shrinks);
    at_work_[thread].store(UINT64_MAX);
    EXPECT_TRUE(status.ok() || absl::IsOutOfRange(status) ||
                absl::IsUnimplemented(status))
        << status;
    check_above({kBase + random() % sectors * 512, 512});
  }
}

void Stress::write_and_read_below(uint64_t thread) {
  std::mt19937_64 random(seed_ + 100 + thread);
  const uint64_t bytes = kBase / kWriters / 512 * 512;
  std::string expected(bytes, '\0');
  while (!stop_ && !::testing::Test::HasFailure()) {
    const uint64_t first = random() % (bytes / 512) * 512;
    const uint64_t length =
        std::min<uint64_t>((1 + random() % 20) * 512, bytes - first);
    const auto value = static_cast<uint8_t>(random());
    const ByteRange range{thread * bytes + first, length};
    ASSERT_TRUE(testing::write_fill(driver_, range, value).ok());
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(first), length,
                static_cast<char>(value));
    const auto content = testing::read_bytes(driver_, {thread * bytes, bytes});
    ASSERT_TRUE(content.ok()) << content.status();
    ASSERT_TRUE(*content == expected);
  }
}

void Stress::resize(std::mt19937_64* random) {
  const uint64_t length =
      kBase + (*random)() % ((kLongest - kBase) / 512 + 1) * 512;
  const bool shrinks = length < driver_.length_bytes();
  // Nobody may still be writing for an earlier shrink than the last.
  for (const std::atomic<uint64_t>& writer : at_work_) {
    while (shrinks && writer.load() + 1 < shrinks_.load() &&
           writer.load() != UINT64_MAX) {
      std::this_thread::yield();
    }
  }
  const absl::Status status = driver_.resize(
      length, !shrinks && (*random)() % 4 == 0 ? Preallocation::kMetadata
                                               : Preallocation::kOff);
  EXPECT_TRUE(status.ok()) << status;
  // From where the shortest of these disks ended; the others do not matter.
  if (shrinks) ++shrinks_;
}

void Stress::run() {
  for (std::atomic<uint64_t>& writer : at_work_) writer = UINT64_MAX;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kWriters; ++t) {
    threads.emplace_back([this, t] { write_and_read_above(t); });
    threads.emplace_back([this, t] { write_and_read_below(t); });
  }
  std::mt19937_64 random(seed_);
  for (int i = 0; i < kResizes && !::testing::Test::HasFailure(); ++i) {
    // All that lies above the base goes at every shrink.
    EXPECT_TRUE(driver_.set_length(kBase, SetLengthMode::kExact).ok());
    resize(&random);
  }
  stop_ = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(ResizeStress, BesideReadersAndWriters) {
  const uint64_t seed = testing::test_seed();
  for (const char* reuse : {"lazy", "lowest"}) {
    MemoryImageOptions options;
    options.size_bytes = kLongest;
    options.create["cluster_size"] = absl::StrCat(kCluster);
    options.open["reuse"] = reuse;
    MemoryImage image(options);
    Stress(&image.driver(), seed).run();
    const absl::Status clean = image.close_and_check();
    EXPECT_TRUE(clean.ok()) << clean;
  }
}

}  // namespace
}  // namespace spindle::qcow2

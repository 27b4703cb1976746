#include "engine/bounce_driver.h"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace spindle {
namespace {

struct Call {
  const void* memory;
  size_t length_bytes;
  uint64_t offset_bytes;
};

// A disk of linear memory that notes its calls.
class LinearMemory : public LinearDriver {
 public:
  struct Options {
    uint32_t alignment_bytes = 512;
    size_t max_transfer_bytes = 0;
    bool one_at_a_time = true;
  };
  LinearMemory(size_t length_bytes, Options options)
      : bytes(length_bytes, '.'), options_(options) {}

  absl::Status read(void* to, size_t length_bytes,
                    uint64_t offset_bytes) override {
    note(Call{to, length_bytes, offset_bytes});
    std::memcpy(to, bytes.data() + offset_bytes, length_bytes);
    return finish();
  }
  absl::Status write(const void* from, size_t length_bytes,
                     uint64_t offset_bytes) override {
    note(Call{from, length_bytes, offset_bytes});
    std::memcpy(bytes.data() + offset_bytes, from, length_bytes);
    return finish();
  }
  absl::Status flush() override {
    note(Call{nullptr, 0, 0});
    return finish();
  }
  absl::string_view format_name() const override { return "linear"; }
  uint64_t length_bytes() const override { return bytes.size(); }
  bool read_only() const override { return false; }
  uint32_t alignment_bytes() const override { return options_.alignment_bytes; }
  size_t max_transfer_bytes() const override {
    return options_.max_transfer_bytes;
  }
  bool one_at_a_time() const override { return options_.one_at_a_time; }

  std::string bytes;
  std::vector<Call> calls;
  absl::Status next_result;

 private:
  // Without a lock: it relies on one_at_a_time().
  void note(const Call& call) {
    EXPECT_FALSE(std::exchange(busy_, true));
    EXPECT_EQ(
        reinterpret_cast<uintptr_t>(call.memory) % options_.alignment_bytes,
        0u);
    EXPECT_EQ(call.length_bytes % options_.alignment_bytes, 0u);
    if (options_.max_transfer_bytes > 0) {
      EXPECT_LE(call.length_bytes, options_.max_transfer_bytes);
    }
    calls.push_back(call);
  }
  absl::Status finish() {
    busy_ = false;
    return std::exchange(next_result, absl::OkStatus());
  }

  const Options options_;
  bool busy_ = false;
};

struct Bounced {
  explicit Bounced(LinearMemory::Options options = {},
                   size_t max_bounce_bytes = 4096)
      : linear(new LinearMemory(64 << 10, options)),
        driver(std::unique_ptr<LinearDriver>(linear), max_bounce_bytes) {}
  LinearMemory* const linear;  // owned by driver
  BounceDriver driver;
};

std::string pattern(size_t length) {
  std::string result(length, '\0');
  for (size_t i = 0; i < length; ++i) {
    result[i] = static_cast<char>('a' + (i * 7 + i / 512) % 26);
  }
  return result;
}

TEST(BounceDriver, OneAlignedSegmentGoesStraightThrough) {
  Bounced bounced;
  AlignedBuffer memory(32768, 512);
  ASSERT_TRUE(
      bounced.driver.read(IoVector(memory.data(), 32768), Sector(2)).ok());
  ASSERT_EQ(bounced.linear->calls.size(), 1u);
  EXPECT_EQ(bounced.linear->calls[0].memory, memory.data());
  EXPECT_EQ(bounced.linear->calls[0].length_bytes, 32768u);
  EXPECT_EQ(bounced.linear->calls[0].offset_bytes, 1024u);
}

TEST(BounceDriver, ScatteredMemoryIsGatheredInPieces) {
  Bounced bounced;
  const std::string bytes = pattern(10240);
  AlignedBuffer memory(10241, 512);
  uint8_t* const odd = memory.data() + 1;
  std::memcpy(odd, bytes.data(), bytes.size());
  const IoVector qiov{{odd, 1000}, {odd + 1000, 9240}};
  ASSERT_TRUE(bounced.driver.write(qiov, Sector(3)).ok());
  EXPECT_EQ(bounced.linear->bytes.substr(1536, 10240), bytes);
  ASSERT_EQ(bounced.linear->calls.size(), 3u);  // 4096, 4096, 2048
  EXPECT_EQ(bounced.linear->calls[2].length_bytes, 2048u);

  std::memset(odd, '?', bytes.size());
  ASSERT_TRUE(bounced.driver.read(qiov, Sector(3)).ok());
  EXPECT_EQ(std::string(odd, odd + bytes.size()), bytes);
}

TEST(BounceDriver, KeepsToTheLimitOfTheLinearDriver) {
  Bounced bounced({.max_transfer_bytes = 1500}, 1 << 20);
  AlignedBuffer memory(4096, 512);
  std::memset(memory.data(), 'w', 4096);
  ASSERT_TRUE(
      bounced.driver.write(IoVector(memory.data(), 4096), Sector(0)).ok());
  ASSERT_TRUE(
      bounced.driver.write(IoVector(memory.data() + 1, 3584), Sector(8)).ok());
  EXPECT_EQ(bounced.linear->bytes.substr(0, 7680), std::string(7680, 'w'));
}

TEST(BounceDriver, AsksForTheAlignmentOfTheLinearDriverOnly) {
  Bounced bounced({.alignment_bytes = 4096}, 512);
  EXPECT_EQ(bounced.driver.limits().request_alignment_bytes, 4096u);
  EXPECT_EQ(bounced.driver.limits().memory_alignment_bytes, 1u);
  std::string bytes = pattern(8193);
  ASSERT_TRUE(
      bounced.driver.write(IoVector(bytes.data() + 1, 8192), Sector(8)).ok());
  EXPECT_EQ(bounced.linear->bytes.substr(4096, 8192), bytes.substr(1));
}

TEST(BounceDriver, AnErrorStopsTheTransfer) {
  Bounced bounced;
  bounced.linear->next_result = absl::DataLossError("broken");
  std::string bytes(8193, 'w');
  const absl::Status status =
      bounced.driver.write(IoVector(bytes.data() + 1, 8192), Sector(0));
  EXPECT_EQ(status.message(), "broken");
  EXPECT_EQ(bounced.linear->calls.size(), 1u);
}

// The linear driver's own bookkeeping is a data race if calls overlap.
TEST(BounceDriver, SerialisesCallsOfThreads) {
  Bounced bounced;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      std::string bytes(1024, static_cast<char>('a' + i));
      for (int round = 0; round < 200; ++round) {
        const IoVector qiov(bytes.data(), bytes.size());
        EXPECT_TRUE(bounced.driver.write(qiov, Sector(2 * i)).ok());
        EXPECT_TRUE(bounced.driver.read(qiov, Sector(2 * i)).ok());
        EXPECT_TRUE(bounced.driver.flush().ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(bounced.linear->bytes.substr(i * 1024, 1024),
              std::string(1024, static_cast<char>('a' + i)));
  }
}

}  // namespace
}  // namespace spindle

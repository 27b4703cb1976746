#include "engine/bounce_driver.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
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
    Capabilities capabilities = {};
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
  uint32_t optimal_transfer_bytes() const override { return 8192; }
  Capabilities capabilities() const override { return options_.capabilities; }
  std::optional<StorageIdentity> identity() const override {
    return StorageIdentity{1, 2};
  }
  void add_to_info(ImageInfo* info) const override {
    info->cluster_size_bytes = 8192;
  }

  absl::Status discard(ByteRange range) override {
    note(Call{nullptr, range.length, range.offset});
    return finish();
  }
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override {
    note(Call{nullptr, range.length, range.offset});
    EXPECT_TRUE(flags.may_unmap);
    return finish();
  }
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope) override {
    note(Call{nullptr, range.length, range.offset});
    BlockStatus status;
    status.length = 512;
    if (absl::Status result = finish(); !result.ok()) return result;
    return status;
  }
  absl::StatusOr<CheckResult> check(const CheckOptions&) override {
    note(Call{nullptr, 0, 0});
    CheckResult result;
    result.corruptions = 3;
    if (absl::Status status = finish(); !status.ok()) return status;
    return result;
  }
  absl::Status reopen(const ReopenOptions& options) override {
    note(Call{nullptr, 0, 0});
    EXPECT_TRUE(options.read_only);
    return finish();
  }

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

TEST(BounceDriver, AnErrorReadsNothing) {
  Bounced bounced;
  bounced.linear->next_result = absl::DataLossError("broken");
  std::string bytes(513, '?');
  EXPECT_FALSE(
      bounced.driver.read(IoVector(bytes.data() + 1, 512), Sector(0)).ok());
  EXPECT_EQ(bytes, std::string(513, '?'));
}

// Each boundary of 512 bytes falls within a segment, the last is a single byte.
TEST(BounceDriver, ManyOddSegmentsBecomeFewCalls) {
  Bounced bounced;
  std::string bytes = pattern(40 * 100 + 96);
  std::vector<iovec> segments;
  for (size_t at = 0; at < bytes.size() - 1; at += 65)
    segments.push_back(
        {&bytes[at], std::min(size_t{65}, bytes.size() - 1 - at)});
  segments.push_back({&bytes[bytes.size() - 1], 1});
  const IoVector qiov{absl::MakeConstSpan(segments)};
  ASSERT_EQ(qiov.length_bytes(), 4096u);
  ASSERT_TRUE(bounced.driver.write(qiov, Sector(1)).ok());
  EXPECT_EQ(bounced.linear->calls.size(), 1u);
  EXPECT_EQ(bounced.linear->bytes.substr(512, 4096), bytes);
  const std::string written = bytes;
  qiov.fill('?');
  ASSERT_TRUE(bounced.driver.read(qiov, Sector(1)).ok());
  EXPECT_EQ(bytes, written);
  EXPECT_EQ(bounced.linear->bytes[511], '.');
  EXPECT_EQ(bounced.linear->bytes[512 + 4096], '.');
}

// A long aligned segment behind short ones is not copied.
TEST(BounceDriver, LongAlignedSegmentsAreNotCopied) {
  Bounced bounced;
  AlignedBuffer memory(1024 + 8192, 512);
  const IoVector qiov{{memory.data(), 512},
                      {memory.data() + 1024, 8192},
                      {memory.data() + 512, 512}};
  ASSERT_TRUE(bounced.driver.read(qiov, Sector(0)).ok());
  const auto& calls = bounced.linear->calls;
  ASSERT_EQ(calls.size(), 3u);
  // Pieces follow each other without a gap.
  uint64_t end = 0;
  bool direct = false;
  for (const Call& call : calls) {
    EXPECT_EQ(call.offset_bytes, end);
    end += call.length_bytes;
    direct = direct || (call.memory > memory.data() &&
                        call.memory < memory.data() + memory.size());
  }
  EXPECT_EQ(end, 9216u);
  EXPECT_TRUE(direct);
}

// The last unit of an image that ends within it goes down whole; the linear
// driver knows where the image ends.
TEST(BounceDriver, TheLastUnitIsPassedOnWhole) {
  Bounced bounced({.alignment_bytes = 4096});
  std::string bytes(4097, 'e');
  const uint64_t last = bounced.driver.length_bytes() - 4096;
  ASSERT_TRUE(bounced.driver
                  .write(IoVector(bytes.data() + 1, 4096),
                         Sector::from_byte_offset(last))
                  .ok());
  ASSERT_EQ(bounced.linear->calls.size(), 1u);
  EXPECT_EQ(bounced.linear->calls[0].offset_bytes, last);
  EXPECT_EQ(bounced.linear->calls[0].length_bytes, 4096u);
}

TEST(BounceDriver, NeverPromisesNotToBlock) {
  Bounced bounced;
  AlignedBuffer memory(512, 512);
  const IoVector qiov(memory.data(), 512);
  EXPECT_EQ(bounced.driver.try_read(qiov, Sector(0)), 0u);
  EXPECT_EQ(bounced.driver.try_write(qiov, Sector(0)), 0u);
  EXPECT_FALSE(bounced.driver.capabilities().has(Capability::kTryRead));
  EXPECT_FALSE(bounced.driver.capabilities().has(Capability::kTryWrite));
  EXPECT_TRUE(bounced.linear->calls.empty());
}

TEST(BounceDriver, SaysWhatTheLinearDriverIs) {
  const Bounced bounced({.capabilities = {Capability::kCheck}});
  EXPECT_EQ(bounced.driver.format_name(), "linear");
  EXPECT_EQ(bounced.driver.limits().optimal_transfer_bytes, 8192u);
  EXPECT_EQ(bounced.driver.identity(), (StorageIdentity{1, 2}));
  const ImageInfo info = bounced.driver.info();
  EXPECT_EQ(info.format, "linear");
  EXPECT_EQ(info.virtual_size_bytes, 65536u);
  EXPECT_EQ(info.cluster_size_bytes, 8192u);
  EXPECT_TRUE(bounced.driver.capabilities().has(Capability::kCheck));
  EXPECT_FALSE(bounced.driver.capabilities().has(Capability::kDiscard));
}

constexpr Capabilities kAll = {Capability::kDiscard, Capability::kWriteZeroes,
                               Capability::kBlockStatus, Capability::kCheck,
                               Capability::kReopen};

TEST(BounceDriver, PassesOptionalOperationsOn) {
  Bounced bounced({.capabilities = kAll});
  BounceDriver& driver = bounced.driver;
  EXPECT_TRUE(driver.discard({512, 1024}).ok());
  EXPECT_TRUE(driver.write_zeroes({2048, 512}, {.may_unmap = true}).ok());
  EXPECT_EQ(
      driver.block_status({512, 1024}, BlockStatusScope::kThisLayer)->length,
      512u);
  EXPECT_EQ(driver.check({})->corruptions, 3u);
  EXPECT_TRUE(driver.reopen({.read_only = true}).ok());
  ASSERT_EQ(bounced.linear->calls.size(), 5u);
  EXPECT_EQ(bounced.linear->calls[0].offset_bytes, 512u);
  EXPECT_EQ(bounced.linear->calls[1].offset_bytes, 2048u);
  bounced.linear->next_result = absl::DataLossError("broken");
  EXPECT_EQ(driver.check({}).status().message(), "broken");
}

TEST(BounceDriver, RefusesByNameWhatIsNotAnnounced) {
  Bounced bounced;
  BounceDriver& driver = bounced.driver;
  const absl::Status refusals[] = {
      driver.discard({0, 512}), driver.write_zeroes({0, 512}, {}),
      driver.block_status({0, 512}, BlockStatusScope::kThisLayer).status(),
      driver.check({}).status(), driver.reopen({})};
  for (const absl::Status& status : refusals) {
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_NE(status.message().find("'linear'"), std::string::npos) << status;
  }
  EXPECT_TRUE(bounced.linear->calls.empty());
}

// A linear driver that takes calls side by side gets them so: two calls that
// wait for each other inside it.
class Meeting : public LinearMemory {
 public:
  Meeting() : LinearMemory(65536, {.one_at_a_time = false}) {}
  absl::Status read(void*, size_t, uint64_t) override {
    inside_.fetch_add(1);
    while (inside_.load() < 2) std::this_thread::yield();
    return absl::OkStatus();
  }

 private:
  std::atomic<int> inside_{0};
};

TEST(BounceDriver, LetsCallsOverlapWhereTheyMay) {
  BounceDriver driver(std::make_unique<Meeting>());
  const auto read = [&] {
    AlignedBuffer memory(512, 512);
    EXPECT_TRUE(driver.read(IoVector(memory.data(), 512), Sector(0)).ok());
  };
  std::thread other(read);
  read();
  other.join();
}

// The linear driver's own bookkeeping is a data race if calls overlap.
TEST(BounceDriver, SerialisesCallsOfThreads) {
  Bounced bounced({.capabilities = kAll});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      std::string bytes(1024, static_cast<char>('a' + i));
      for (int round = 0; round < 200; ++round) {
        const IoVector qiov(bytes.data(), bytes.size());
        EXPECT_TRUE(bounced.driver.write(qiov, Sector(2 * i)).ok());
        EXPECT_TRUE(bounced.driver.read(qiov, Sector(2 * i)).ok());
        EXPECT_TRUE(bounced.driver.flush().ok());
        EXPECT_TRUE(bounced.driver.discard({32768, 512}).ok());
        EXPECT_TRUE(
            bounced.driver.block_status({0, 512}, BlockStatusScope::kWholeChain)
                .ok());
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

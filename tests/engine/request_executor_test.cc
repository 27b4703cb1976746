#include "engine/request_executor.h"

#include <algorithm>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/gated_driver.h"

namespace spindle {
namespace {

using testing::GatedDriver;

// An odd length: the last sector has 100 bytes.
constexpr uint64_t kLength = 64 * 512 + 100;

std::string pattern(size_t bytes, int seed = 1) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i)
    text[i] = static_cast<char>('a' + (i * 7 + seed) % 26);
  return text;
}

IoVector over(std::string* text) {
  return IoVector(text->data(), text->size());
}

// A driver, and what a device does with it on one thread.
class Bench {
 public:
  explicit Bench(GatedDriver::Options options = {},
                 CacheMode mode = CacheMode::kWriteback,
                 DetectZeroes detect = DetectZeroes::kOff)
      : driver(with_length(options)), requests(&driver, mode, detect) {
    driver.set_content(0, pattern(driver.length_bytes(), 3));
  }

  absl::Status run(RequestSpec spec, const IoVector& qiov = IoVector()) {
    if (!qiov.empty()) spec.length = qiov.length_bytes();
    if (absl::Status status = requests.check(spec); !status.ok()) return status;
    RequestExecutor::Attempt attempt;
    return requests.run(spec, qiov, 0, &status_found, &attempt);
  }
  absl::Status pread(std::string* into, uint64_t offset) {
    return run({.kind = RequestKind::kRead, .offset = offset}, over(into));
  }
  absl::Status pwrite(std::string* from, uint64_t offset, bool fua = false) {
    return run({.kind = RequestKind::kWrite,
                .write_flags = {.fua = fua},
                .offset = offset},
               over(from));
  }
  absl::Status zero(ByteRange range, WriteZeroesFlags flags = {}) {
    return run({.kind = RequestKind::kWriteZeroes,
                .zeroes_flags = flags,
                .offset = range.offset,
                .length = range.length});
  }

  GatedDriver driver;
  RequestExecutor requests;
  BlockStatus status_found;

 private:
  static GatedDriver::Options with_length(GatedDriver::Options options) {
    if (options.length_bytes == 0) options.length_bytes = kLength;
    return options;
  }
};

GatedDriver::Options with_limits(DriverLimits limits) {
  return {.limits = limits};
}

GatedDriver::Options plain_driver() {
  GatedDriver::Options options;
  options.capabilities = {};
  return options;
}

struct BadCase {
  const char* name;
  RequestSpec spec;
  absl::StatusCode code;
};

TEST(RequestChecks, RefuseWhatTheDriverMustNotSee) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  const BadCase cases[] = {
      {"read beyond the last byte",
       {.kind = RequestKind::kRead, .offset = kLength, .length = 1},
       absl::StatusCode::kOutOfRange},
      {"end overflows",
       {.kind = RequestKind::kRead, .offset = kMax, .length = 2},
       absl::StatusCode::kOutOfRange},
      {"odd length by sector",
       {.kind = RequestKind::kRead, .by_sector = true, .length = 511},
       absl::StatusCode::kInvalidArgument},
      {"sector beyond the last one",
       {.kind = RequestKind::kRead,
        .by_sector = true,
        .offset = 65 * 512,
        .length = 512},
       absl::StatusCode::kOutOfRange},
      {"discard too far",
       {.kind = RequestKind::kDiscard, .offset = 0, .length = 66 * 512},
       absl::StatusCode::kOutOfRange},
      {"zeroes too far",
       {.kind = RequestKind::kWriteZeroes, .offset = 512, .length = kMax},
       absl::StatusCode::kOutOfRange},
      {"status of nothing",
       {.kind = RequestKind::kBlockStatus, .offset = 512, .length = 0},
       absl::StatusCode::kInvalidArgument},
  };
  Bench bench;
  for (const BadCase& bad : cases) {
    EXPECT_EQ(bench.requests.check(bad.spec).code(), bad.code) << bad.name;
  }
  EXPECT_TRUE(bench.driver.transfers().empty());
}

TEST(RequestChecks, SaturateSectorsThatDoNotFit) {
  EXPECT_EQ(saturated_byte_offset(Sector(3)), 1536u);
  EXPECT_GT(saturated_byte_offset(Sector(std::numeric_limits<uint64_t>::max())),
            uint64_t{1} << 63);
}

// Only what does nothing but write.
TEST(TakesTurns, PlainWritesOfADriverThatSaysSo) {
  const RequestSpec write{.kind = RequestKind::kWrite};
  const RequestSpec fua{.kind = RequestKind::kWrite,
                        .write_flags = {.fua = true}};
  for (const bool says_so : {false, true}) {
    const auto options = with_limits({.writes_take_turns = says_so});
    const Bench bench(options);
    EXPECT_EQ(bench.requests.takes_turns(write), says_so);
    EXPECT_FALSE(bench.requests.takes_turns(fua));
    EXPECT_FALSE(bench.requests.takes_turns({.kind = RequestKind::kRead}));
    EXPECT_FALSE(bench.requests.takes_turns({.kind = RequestKind::kFlush}));
    EXPECT_FALSE(
        bench.requests.takes_turns({.kind = RequestKind::kWriteCompressed}));
    const Bench durable(options, CacheMode::kWritethrough);
    EXPECT_FALSE(durable.requests.takes_turns(write));
  }
}

TEST(RequestChecks, RefuseChangesOfAReadOnlyImage) {
  Bench bench({.read_only = true});
  for (RequestKind kind :
       {RequestKind::kWrite, RequestKind::kDiscard, RequestKind::kWriteZeroes,
        RequestKind::kWriteCompressed}) {
    EXPECT_EQ(bench.requests.check({.kind = kind, .length = 512}).code(),
              absl::StatusCode::kPermissionDenied);
  }
  EXPECT_TRUE(
      bench.requests.check({.kind = RequestKind::kRead, .length = 512}).ok());
}

TEST(LastSector, ReadsZeroesBeyondTheEndAndWritesStopThere) {
  Bench bench;
  std::string sector(512, 'x');
  const RequestSpec last{.by_sector = true, .offset = 64 * 512};
  ASSERT_TRUE(bench.run(last, over(&sector)).ok());
  EXPECT_EQ(sector.substr(0, 100), bench.driver.content({64 * 512, 100}));
  EXPECT_EQ(sector.substr(100), std::string(412, '\0'));
  std::string fresh = pattern(512, 9);
  RequestSpec write = last;
  write.kind = RequestKind::kWrite;
  ASSERT_TRUE(bench.run(write, over(&fresh)).ok());
  EXPECT_EQ(bench.driver.length_bytes(), kLength);
  EXPECT_EQ(bench.driver.content({64 * 512, 100}), fresh.substr(0, 100));
}

struct LimitCase {
  const char* name;
  DriverLimits limits;
};

std::vector<LimitCase> limit_cases() {
  return {
      {"none", {}},
      {"4096 bytes", {.request_alignment_bytes = 4096}},
      {"memory", {.memory_alignment_bytes = 512}},
      {"both",
       {.request_alignment_bytes = 4096, .memory_alignment_bytes = 4096}},
      {"short transfers", {.max_transfer_bytes = 1024}},
      {"short, with boundaries",
       {.optimal_transfer_bytes = 2048, .max_transfer_bytes = 3072}},
      {"two segments", {.max_segments = 2}},
      {"one segment", {.memory_alignment_bytes = 16, .max_segments = 1}},
  };
}

// Every offset and length near a block's edges, over every kind of limit.
TEST(ByteGranular, ReadsAndWritesAnyRange) {
  for (const LimitCase& each : limit_cases()) {
    Bench bench(with_limits(each.limits));
    std::string model = bench.driver.content();
    int seed = 0;
    for (uint64_t offset : {0, 1, 511, 512, 513, 4000, 4095, 4096, 8191}) {
      for (uint64_t length :
           {1, 2, 511, 512, 513, 1024, 4095, 4096, 4097, 9000}) {
        std::string data = pattern(length, ++seed);
        ASSERT_TRUE(bench.pwrite(&data, offset).ok()) << each.name;
        model.replace(offset, length, data);
        ASSERT_EQ(bench.driver.content(), model)
            << each.name << " " << offset << " " << length;
        std::string back(length, '?');
        ASSERT_TRUE(bench.pread(&back, offset).ok()) << each.name;
        ASSERT_EQ(back, data) << each.name;
      }
    }
    std::string tail = pattern(300, 77);
    ASSERT_TRUE(bench.pwrite(&tail, kLength - 300).ok()) << each.name;
    model.replace(kLength - 300, 300, tail);
    EXPECT_EQ(bench.driver.content(), model) << each.name;
    std::string back(300, '?');
    ASSERT_TRUE(bench.pread(&back, kLength - 300).ok()) << each.name;
    EXPECT_EQ(back, tail) << each.name;
  }
}

TEST(ByteGranular, ManyShortSegments) {
  for (const LimitCase& each : limit_cases()) {
    Bench bench(with_limits(each.limits));
    std::string data = pattern(3000, 5);
    IoVector scattered;
    for (size_t i = 0; i < data.size(); i += 30) {
      scattered.append(IoVector(data.data() + i, 30));
    }
    ASSERT_TRUE(
        bench.run({.kind = RequestKind::kWrite, .offset = 700}, scattered)
            .ok());
    EXPECT_EQ(bench.driver.content({700, 3000}), data) << each.name;
    std::string back(3000, '?');
    IoVector gathered;
    for (size_t i = 0; i < back.size(); i += 60)
      gathered.append(IoVector(back.data() + i, 60));
    ASSERT_TRUE(
        bench.run({.kind = RequestKind::kRead, .offset = 700}, gathered).ok());
    EXPECT_EQ(back, data) << each.name;
  }
}

TEST(Splitting, KeepsToTheLimitsAndCutsAtTheBoundaries) {
  Bench bench(with_limits(
      {.optimal_transfer_bytes = 4096, .max_transfer_bytes = 6144}));
  std::string data = pattern(16384);
  ASSERT_TRUE(bench.pwrite(&data, 1024).ok());
  std::vector<std::pair<uint64_t, uint64_t>> pieces;
  for (const auto& transfer : bench.driver.transfers()) {
    pieces.emplace_back(transfer.offset, transfer.length);
  }
  const std::vector<std::pair<uint64_t, uint64_t>> expected = {
      {1024, 3072}, {4096, 4096}, {8192, 4096}, {12288, 5120}};
  EXPECT_EQ(pieces, expected);
}

TEST(Splitting, LeavesWhatFitsInOnePiece) {
  Bench bench(with_limits(
      {.optimal_transfer_bytes = 4096, .max_transfer_bytes = 65536}));
  std::string data = pattern(16384);
  ASSERT_TRUE(bench.pwrite(&data, 1024).ok());
  EXPECT_EQ(bench.driver.transfers().size(), 1u);
}

TEST(Splitting, RefusesLimitsThatContradictThemselves) {
  EXPECT_FALSE(
      DriverTransfer::check_limits({.request_alignment_bytes = 700}).ok());
  EXPECT_FALSE(
      DriverTransfer::check_limits({.memory_alignment_bytes = 0}).ok());
  EXPECT_FALSE(DriverTransfer::check_limits(
                   {.request_alignment_bytes = 4096, .max_transfer_bytes = 512})
                   .ok());
  EXPECT_TRUE(DriverTransfer::check_limits({}).ok());
}

// A read-modify-write that is under way keeps an overlapping write from being
// lost, and does not hold up another one.
TEST(ReadModifyWrite, WaitsOnlyForWhatItOverlaps) {
  Bench bench(with_limits({.request_alignment_bytes = 4096}));
  bench.driver.close_gate();
  std::string ragged = pattern(10, 1);
  std::string block = pattern(4096, 2);
  std::string elsewhere = pattern(4096, 4);
  std::thread first([&] { EXPECT_TRUE(bench.pwrite(&ragged, 100).ok()); });
  bench.driver.wait_for_waiting(1);  // it reads its block
  std::thread second([&] { EXPECT_TRUE(bench.pwrite(&block, 0).ok()); });
  std::thread third([&] { EXPECT_TRUE(bench.pwrite(&elsewhere, 8192).ok()); });
  bench.driver.wait_for_waiting(2);
  EXPECT_EQ(bench.driver.transfers().back().offset, 8192u);
  EXPECT_EQ(bench.driver.transfers().size(), 2u);
  bench.driver.open_gate();
  first.join();
  second.join();
  third.join();
  EXPECT_EQ(bench.driver.content({0, 4096}), block);
  EXPECT_EQ(bench.driver.content({8192, 4096}), elsewhere);
}

TEST(ReadModifyWrite, GivesUpWhereItMustNotWait) {
  Bench bench;
  bench.driver.close_gate();
  std::string ragged = pattern(10, 1);
  std::thread first([&] { EXPECT_TRUE(bench.pwrite(&ragged, 100).ok()); });
  bench.driver.wait_for_waiting(1);
  std::string block = pattern(512, 2);
  RequestExecutor::Attempt attempt{.may_wait = false};
  const RequestSpec spec{.kind = RequestKind::kWrite, .length = 512};
  EXPECT_FALSE(
      bench.requests.run(spec, over(&block), 0, nullptr, &attempt).ok());
  EXPECT_TRUE(attempt.gave_up);
  EXPECT_EQ(bench.driver.transfers().size(), 1u);
  bench.driver.open_gate();
  first.join();
}

TEST(Durability, FlushesWhereItWasAskedFor) {
  struct Case {
    CacheMode mode;
    bool fua;
    uint64_t flushes;
  };
  for (const Case& each :
       {Case{CacheMode::kWriteback, false, 0}, Case{CacheMode::kNone, false, 0},
        Case{CacheMode::kWriteback, true, 1},
        Case{CacheMode::kWritethrough, false, 1},
        Case{CacheMode::kDirectsync, false, 1},
        Case{CacheMode::kDirectsync, true, 1},
        Case{CacheMode::kUnsafe, true, 0}}) {
    Bench bench({}, each.mode);
    std::string data = pattern(512);
    ASSERT_TRUE(bench.pwrite(&data, 0, each.fua).ok());
    EXPECT_EQ(bench.driver.flush_count(), each.flushes)
        << cache_mode_name(each.mode);
  }
}

TEST(Durability, UnsafeDoesNotFlush) {
  Bench bench({}, CacheMode::kUnsafe);
  ASSERT_TRUE(bench.run({.kind = RequestKind::kFlush}).ok());
  EXPECT_EQ(bench.driver.flush_count(), 0u);
  Bench safe;
  ASSERT_TRUE(safe.run({.kind = RequestKind::kFlush}).ok());
  EXPECT_EQ(safe.driver.flush_count(), 1u);
}

TEST(DetectZeroes, TurnsZeroesIntoWriteZeroes) {
  for (DetectZeroes mode : {DetectZeroes::kOn, DetectZeroes::kUnmap}) {
    Bench bench({}, CacheMode::kWriteback, mode);
    std::string zeroes(4096, '\0');
    ASSERT_TRUE(bench.pwrite(&zeroes, 4096).ok());
    EXPECT_TRUE(bench.driver.transfers().empty());
    EXPECT_EQ(bench.driver.content({4096, 4096}), zeroes);
    zeroes[4000] = 'x';
    ASSERT_TRUE(bench.pwrite(&zeroes, 4096).ok());
    EXPECT_EQ(bench.driver.transfers().size(), 1u);
  }
}

TEST(WriteZeroes, ZeroesExactlyTheRangeWithAndWithoutTheDriver) {
  for (bool emulated : {false, true}) {
    for (uint32_t alignment : {512, 4096}) {
      GatedDriver::Options options =
          emulated ? plain_driver() : GatedDriver::Options{};
      options.limits.request_alignment_bytes = alignment;
      options.limits.max_transfer_bytes = 8192;
      Bench bench(options);
      std::string model = bench.driver.content();
      for (ByteRange range :
           {ByteRange{0, 512}, ByteRange{1, 3}, ByteRange{500, 5000},
            ByteRange{4096, 16384}, ByteRange{9000, 30},
            ByteRange{kLength - 5000, 5000}, ByteRange{kLength - 7, 7}}) {
        ASSERT_TRUE(bench.zero(range).ok());
        model.replace(range.offset, range.length, range.length, '\0');
        ASSERT_EQ(bench.driver.content(), model)
            << emulated << alignment << " " << range.offset;
      }
      // Sector callers may name the whole last sector.
      EXPECT_TRUE(bench.zero({60 * 512, 5 * 512}).ok());
      EXPECT_EQ(bench.driver.length_bytes(), kLength);
    }
  }
}

// Makes nothing zero quickly that touches the first 4 KiB.
class FirstBlockByHand : public testing::MemoryDriver {
 public:
  explicit FirstBlockByHand(uint64_t length_bytes)
      : MemoryDriver(options_with(length_bytes)) {}
  absl::Status write(const IoVector& qiov, Sector sector) override {
    by_hand.push_back({sector.byte_offset(), qiov.length_bytes()});
    return MemoryDriver::write(qiov, sector);
  }
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override {
    if (range.offset < 4096)
      return absl::UnimplementedError("a part of something");
    quickly.push_back(range);
    return MemoryDriver::write_zeroes(range, flags);
  }
  std::vector<ByteRange> by_hand, quickly;

 private:
  static Options options_with(uint64_t length_bytes) {
    Options options;
    options.length_bytes = length_bytes;
    return options;
  }
};

TEST(WriteZeroes, TheDriverIsAskedAgainBehindWhatItCannotDo) {
  constexpr uint64_t kAtOnce = DriverTransfer::kMostZeroesAtOnce;
  FirstBlockByHand driver(3 * kAtOnce);
  driver.set_content(0, std::string(driver.length_bytes(), 'x'));
  RequestExecutor requests(&driver, CacheMode::kWriteback, DetectZeroes::kOff);
  RequestExecutor::Attempt attempt;
  ASSERT_TRUE(requests
                  .run({.kind = RequestKind::kWriteZeroes,
                        .offset = 0,
                        .length = driver.length_bytes()},
                       IoVector(), 0, nullptr, &attempt)
                  .ok());
  EXPECT_EQ(driver.by_hand, (std::vector<ByteRange>{{0, kAtOnce}}));
  EXPECT_EQ(driver.quickly, (std::vector<ByteRange>{{kAtOnce, 2 * kAtOnce}}));
  EXPECT_TRUE(driver.content() == std::string(driver.length_bytes(), '\0'));
}

TEST(WriteZeroes, DoesNotFallBackWhereThatIsForbidden) {
  Bench bench(plain_driver());
  EXPECT_EQ(bench.zero({0, 4096}, {.no_fallback = true}).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(bench.driver.transfers().empty());
}

// A range that begins or ends within a sector: quick where the driver makes
// sectors zero as quickly as all else, or where all of the sector is zero then.
TEST(WriteZeroes, RaggedEndsFallBackOnlyWhereTheyMust) {
  Bench bench;
  std::string model = bench.driver.content();
  ASSERT_TRUE(bench.zero({3, 1000}, {.no_fallback = true}).ok());
  model.replace(3, 1000, 1000, '\0');
  EXPECT_EQ(bench.driver.content(), model);

  DriverLimits limits;
  limits.write_zeroes_alignment_bytes = 4096;
  Bench coarse(with_limits(limits));
  model = coarse.driver.content();
  EXPECT_EQ(coarse.zero({3, 1000}, {.no_fallback = true}).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(coarse.driver.content(), model);
  EXPECT_TRUE(coarse.driver.transfers().empty());

  // Nobody has written here.
  GatedDriver fresh({.length_bytes = uint64_t{1} << 20, .limits = limits});
  RequestExecutor requests(&fresh, CacheMode::kWriteback, DetectZeroes::kOff);
  RequestExecutor::Attempt attempt;
  EXPECT_TRUE(requests
                  .run({.kind = RequestKind::kWriteZeroes,
                        .zeroes_flags = {.no_fallback = true},
                        .offset = 3,
                        .length = 1000},
                       IoVector(), 0, nullptr, &attempt)
                  .ok());
}

TEST(Emulation, DiscardDoesNothingAndStatusSaysData) {
  Bench bench(plain_driver());
  const std::string before = bench.driver.content();
  ASSERT_TRUE(
      bench.run({.kind = RequestKind::kDiscard, .offset = 0, .length = 4096})
          .ok());
  EXPECT_EQ(bench.driver.content(), before);
  ASSERT_TRUE(bench
                  .run({.kind = RequestKind::kBlockStatus,
                        .offset = 512,
                        .length = kLength - 512})
                  .ok());
  EXPECT_TRUE(bench.status_found.data);
  EXPECT_TRUE(bench.status_found.end_of_image);
  EXPECT_EQ(bench.status_found.length, kLength - 512);
}

TEST(InPlace, TakesTheFrontAndLeavesTheRest) {
  Bench bench;
  bench.driver.try_limit_bytes = 1024;
  std::string back(4096, '?');
  const RequestSpec spec{.kind = RequestKind::kRead,
                         .by_sector = true,
                         .offset = 512,
                         .length = 4096};
  const uint64_t done = bench.requests.try_in_place(spec, over(&back));
  EXPECT_EQ(done, 1024u);
  RequestExecutor::Attempt attempt;
  ASSERT_TRUE(
      bench.requests.run(spec, over(&back), done, nullptr, &attempt).ok());
  EXPECT_EQ(back, bench.driver.content({512, 4096}));
  ASSERT_EQ(bench.driver.transfers().size(), 1u);
  EXPECT_EQ(bench.driver.transfers()[0].offset, 512u + 1024u);
}

TEST(InPlace, LeavesDurableAndRaggedWritesToTheQueue) {
  Bench bench;
  std::string data = pattern(512);
  RequestSpec spec{.kind = RequestKind::kWrite, .offset = 0, .length = 512};
  EXPECT_EQ(bench.requests.try_in_place(spec, over(&data)), 512u);
  spec.write_flags.fua = true;
  EXPECT_EQ(bench.requests.try_in_place(spec, over(&data)), 0u);
  spec.write_flags.fua = false;
  spec.offset = 3;
  EXPECT_EQ(bench.requests.try_in_place(spec, over(&data)), 0u);
}

TEST(CacheModes, HaveNames) {
  for (const char* name :
       {"writeback", "writethrough", "none", "directsync", "unsafe"}) {
    absl::StatusOr<CacheMode> mode = parse_cache_mode(name);
    ASSERT_TRUE(mode.ok());
    EXPECT_EQ(cache_mode_name(*mode), name);
  }
  EXPECT_FALSE(parse_cache_mode("write-back").ok());
  OpenOptions options;
  apply_cache_mode(CacheMode::kDirectsync, &options);
  EXPECT_TRUE(options.direct);
  EXPECT_FALSE(options.no_flush);
  apply_cache_mode(CacheMode::kUnsafe, &options);
  EXPECT_FALSE(options.direct);
  EXPECT_TRUE(options.no_flush);
}

// ---- Compressed writes ------------------------------------------------------

// Stores what it is given, and remembers how it came.
class CompressingDriver : public testing::MemoryDriver {
 public:
  static constexpr uint64_t kClusterBytes = 4096;
  static constexpr uint64_t kLengthBytes = 4 * kClusterBytes + 700;

  explicit CompressingDriver(DriverLimits limits = {})
      : MemoryDriver(options_with(limits)) {}

  ImageInfo info() const override {
    ImageInfo info = MemoryDriver::info();
    info.cluster_size_bytes = kClusterBytes;
    return info;
  }
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override {
    calls.push_back({sector.byte_offset(), qiov.length_bytes()});
    segments = std::max(segments, qiov.segment_count());
    return MemoryDriver::write(qiov, sector);
  }

  std::vector<ByteRange> calls;
  size_t segments = 0;

 private:
  static Options options_with(DriverLimits limits) {
    Options options;
    options.length_bytes = kLengthBytes;
    options.limits = limits;
    options.capabilities.add(Capability::kWriteCompressed);
    options.capabilities.remove(Capability::kGrows);
    return options;
  }
};

RequestSpec compressed_at(uint64_t offset, uint64_t length, bool fua = false) {
  return {.kind = RequestKind::kWriteCompressed,
          .by_sector = true,
          .write_flags = {.fua = fua},
          .offset = offset,
          .length = length};
}

absl::Status run_compressed(RequestExecutor& requests, std::string* data,
                            uint64_t offset, bool fua = false) {
  const RequestSpec spec = compressed_at(offset, data->size(), fua);
  if (absl::Status status = requests.check(spec); !status.ok()) return status;
  RequestExecutor::Attempt attempt;
  return requests.run(spec, over(data), 0, nullptr, &attempt);
}

TEST(RequestCompressed, OnlyWholeClustersReachTheDriver) {
  CompressingDriver driver;
  RequestExecutor requests(&driver, CacheMode::kWriteback, DetectZeroes::kOff);
  for (const ByteRange& bad :
       {ByteRange{512, 4096}, ByteRange{0, 512}, ByteRange{4096, 4096 + 512},
        ByteRange{2 * 4096 + 512, 2 * 4096 + 512}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        requests.check(compressed_at(bad.offset, bad.length))))
        << bad.offset;
  }
  EXPECT_TRUE(absl::IsOutOfRange(requests.check(compressed_at(4096, 1 << 20))));
  std::string data = pattern(2 * 4096);
  ASSERT_EQ(run_compressed(requests, &data, 4096), absl::OkStatus());
  // To the end of the image, and to that of its last sector.
  std::string tail = pattern(4096 + 1024);
  ASSERT_EQ(run_compressed(requests, &tail, 3 * 4096), absl::OkStatus());
  ASSERT_EQ(driver.calls.size(), 2u);
  EXPECT_EQ(driver.calls[0], (ByteRange{4096, 2 * 4096}));
  EXPECT_EQ(driver.calls[1], (ByteRange{3 * 4096, 4096 + 1024}));
  EXPECT_EQ(driver.content({4096, 4096}), data.substr(0, 4096));
  EXPECT_EQ(driver.flush_count(), 0u);
  ASSERT_EQ(run_compressed(requests, &data, 0, /*fua=*/true), absl::OkStatus());
  EXPECT_EQ(driver.flush_count(), 1u);
}

TEST(RequestCompressed, IsRefusedWhereTheDriverCannot) {
  Bench bench;
  EXPECT_TRUE(
      absl::IsUnimplemented(bench.requests.check(compressed_at(0, 4096))));
}

// What the driver cannot take as it is comes cluster by cluster.
TEST(RequestCompressed, BouncesWhatTheDriverCannotTake) {
  DriverLimits limits;
  limits.request_alignment_bytes = 4096;
  limits.memory_alignment_bytes = 4096;
  limits.max_segments = 1;
  CompressingDriver driver(limits);
  RequestExecutor requests(&driver, CacheMode::kWriteback, DetectZeroes::kOff);
  std::string data = pattern(CompressingDriver::kLengthBytes);
  data.resize(4 * 4096 + 1024, '\0');
  const RequestSpec spec = compressed_at(0, data.size());
  ASSERT_EQ(requests.check(spec), absl::OkStatus());
  IoVector pieces(data.data(), 1000);
  pieces.append(IoVector(data.data() + 1000, data.size() - 1000));
  RequestExecutor::Attempt attempt;
  ASSERT_EQ(requests.run(spec, pieces, 0, nullptr, &attempt), absl::OkStatus());
  EXPECT_EQ(driver.calls.size(), 5u);
  EXPECT_EQ(driver.segments, 1u);
  EXPECT_EQ(driver.content(), data.substr(0, CompressingDriver::kLengthBytes));
}

TEST(RequestCompressed, ZeroesAreDetected) {
  CompressingDriver driver;
  driver.set_content(0, pattern(4096));
  RequestExecutor requests(&driver, CacheMode::kWriteback, DetectZeroes::kOn);
  std::string zeroes(4096, '\0');
  ASSERT_EQ(run_compressed(requests, &zeroes, 0), absl::OkStatus());
  EXPECT_TRUE(driver.calls.empty());
  EXPECT_EQ(driver.content({0, 4096}), zeroes);
}

}  // namespace
}  // namespace spindle

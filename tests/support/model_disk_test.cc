#include "tests/support/model_disk.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

using Outcome = ModelDisk::Outcome;
using Bytes = std::vector<uint8_t>;

constexpr ByteRange kSector{0, 512};

// A disk of a few sectors under the model, whose bytes the test sets by hand.
class ModelDiskTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kLength = 16 * 512;

  static Bytes content(const ModelDisk::ChangeRef& change) {
    Bytes bytes(change->range.length);
    ModelDisk::fill(*change, IoVector(bytes.data(), bytes.size()));
    return bytes;
  }

  ModelDisk::ChangeRef write(ByteRange range) {
    auto change = model_.begin_write(range);
    model_.end(change, Outcome::kDone);
    return change;
  }

  bool accepts(ByteRange range, const Bytes& data) {
    return !model_.end_read(model_.begin_read(range), data).has_value();
  }

  ModelDisk model_{{.length_bytes = kLength, .initial = {}, .backing = {}}};
  const Bytes zeroes_ = Bytes(512, 0);
};

TEST_F(ModelDiskTest, StampsDifferAndFollowTheirPosition) {
  Bytes whole(64), part(20), other(64);
  stamp_content(7, 100, absl::MakeSpan(whole));
  stamp_content(7, 113, absl::MakeSpan(part));
  stamp_content(8, 100, absl::MakeSpan(other));
  EXPECT_EQ(part, Bytes(whole.begin() + 13, whole.begin() + 33));
  EXPECT_NE(whole, other);
}

TEST_F(ModelDiskTest, UntouchedDiskReadsAsItsInitialContent) {
  EXPECT_TRUE(accepts(kSector, zeroes_));
  EXPECT_FALSE(accepts(kSector, Bytes(512, 1)));
  ModelDisk filled({.length_bytes = kLength,
                    .initial =
                        [](uint64_t offset, absl::Span<uint8_t> out) {
                          stamp_content(99, offset, out);
                        },
                    .backing = {}});
  Bytes expected(512);
  stamp_content(99, 512, absl::MakeSpan(expected));
  EXPECT_FALSE(
      filled.end_read(filled.begin_read({512, 512}), expected).has_value());
  EXPECT_TRUE(
      filled.end_read(filled.begin_read({512, 512}), zeroes_).has_value());
}

TEST_F(ModelDiskTest, AGrowthEndsWhatWasCutOff) {
  const Bytes old = content(write(kSector));
  const auto in_flight = model_.begin_write(kSector);
  const auto growth = model_.begin_write_zeroes({0, 4 * 512});
  EXPECT_TRUE(accepts(kSector, old)) << "not over yet";
  model_.end(growth, Outcome::kDone);
  EXPECT_FALSE(accepts(kSector, old)) << "it came back";
  EXPECT_TRUE(accepts(kSector, zeroes_));
  EXPECT_TRUE(accepts(kSector, content(in_flight)));
  EXPECT_TRUE(accepts({3 * 512, 512}, zeroes_));
}

TEST_F(ModelDiskTest, AReplacementIsAWriteOfTheWholeDisk) {
  const Bytes old = content(write(kSector));
  auto bytes = std::make_shared<Bytes>(2 * kLength);
  for (size_t i = 0; i < bytes->size(); ++i)
    (*bytes)[i] = static_cast<uint8_t>(i % 251);
  const auto change = model_.begin_replacement(bytes);
  const ByteRange far{kLength + 100, 700};
  const Bytes expected(bytes->begin() + static_cast<ptrdiff_t>(far.offset),
                       bytes->begin() + static_cast<ptrdiff_t>(far.end()));
  EXPECT_TRUE(accepts(kSector, old)) << "not over yet";
  model_.end(change, Outcome::kDone);
  EXPECT_FALSE(accepts(kSector, old));
  EXPECT_TRUE(accepts(far, expected));
  EXPECT_FALSE(accepts(far, Bytes(far.length, 0)));
  const Bytes later = content(write(kSector));
  EXPECT_TRUE(accepts(kSector, later));
}

TEST_F(ModelDiskTest, LostWriteAndStaleReadAreCaught) {
  const Bytes first = content(write(kSector));
  EXPECT_FALSE(accepts(kSector, zeroes_)) << "a lost write";
  const Bytes second = content(write(kSector));
  EXPECT_TRUE(accepts(kSector, second));
  EXPECT_FALSE(accepts(kSector, first)) << "a stale read";
}

TEST_F(ModelDiskTest, OneStaleByteIsCaughtAndNamed) {
  const Bytes first = content(write({0, 1024}));
  Bytes data = content(write({0, 1024}));
  size_t position = 700;
  while (data[position] == first[position]) ++position;
  data[position] = first[position];
  const auto mismatch = model_.end_read(model_.begin_read({0, 1024}), data);
  ASSERT_TRUE(mismatch.has_value());
  EXPECT_EQ(mismatch->offset, position);
  EXPECT_EQ(mismatch->found, first[position]);
}

TEST_F(ModelDiskTest, ReadDuringAWriteSeesOldNewOrAMixtureOfBytes) {
  const auto change = model_.begin_write(kSector);
  const Bytes data = content(change);
  Bytes torn = data;
  std::fill(torn.begin() + 100, torn.begin() + 301, 0);
  EXPECT_TRUE(accepts(kSector, zeroes_));
  EXPECT_TRUE(accepts(kSector, data));
  EXPECT_TRUE(accepts(kSector, torn));
  model_.end(change, Outcome::kDone);
  EXPECT_FALSE(accepts(kSector, torn));
  EXPECT_TRUE(accepts(kSector, data));
}

TEST_F(ModelDiskTest, ReadThatBeganBeforeAWriteEndedMaySeeEither) {
  const auto change = model_.begin_write(kSector);
  const auto read_old = model_.begin_read(kSector);
  const auto read_new = model_.begin_read(kSector);
  model_.end(change, Outcome::kDone);
  write({512, 512});  // forgetting must respect the reads in progress
  EXPECT_FALSE(model_.end_read(read_old, zeroes_).has_value());
  EXPECT_FALSE(model_.end_read(read_new, content(change)).has_value());
  EXPECT_FALSE(accepts(kSector, zeroes_));
}

TEST_F(ModelDiskTest, ReadMaySeeAWriteThatBeganLaterButNotOneOfTheFuture) {
  const auto early = model_.begin_read(kSector);
  const auto change = model_.begin_write(kSector);
  EXPECT_FALSE(model_.end_read(early, content(change)).has_value());
  model_.end(change, Outcome::kDone);
  EXPECT_FALSE(accepts({512, 512}, content(change)));
}

TEST_F(ModelDiskTest, OverlappingWritesMixByByteAndATornThirdStampIsCaught) {
  const Bytes third = content(write(kSector));
  const auto a = model_.begin_write(kSector);
  const auto b = model_.begin_write(kSector);
  model_.end(a, Outcome::kDone);
  model_.end(b, Outcome::kDone);
  Bytes mixed = content(a);
  const Bytes of_b = content(b);
  std::copy(of_b.begin() + 200, of_b.end(), mixed.begin() + 200);
  EXPECT_TRUE(accepts(kSector, mixed));
  Bytes wrong = mixed;
  size_t position = 10;
  while (third[position] == mixed[position] ||
         third[position] == of_b[position])
    ++position;
  wrong[position] = third[position];
  EXPECT_FALSE(accepts(kSector, wrong));
}

TEST_F(ModelDiskTest, WhatOverlappingWritesLeftIsStable) {
  const auto a = model_.begin_write(kSector);
  const auto b = model_.begin_write(kSector);
  model_.end(b, Outcome::kDone);
  model_.end(a, Outcome::kDone);
  EXPECT_TRUE(accepts(kSector, content(a)));
  EXPECT_FALSE(accepts(kSector, content(b))) << "it was a's bytes a moment ago";
  EXPECT_TRUE(accepts(kSector, content(a)));
}

TEST_F(ModelDiskTest, DiscardReadsAsOldOrZeroAndThenStays) {
  const Bytes data = content(write(kSector));
  model_.end(model_.begin_discard(kSector), Outcome::kDone);
  Bytes half = data;
  std::fill(half.begin() + 256, half.end(), 0);
  EXPECT_TRUE(accepts(kSector, half));
  EXPECT_FALSE(accepts(kSector, data)) << "data came back";
  EXPECT_FALSE(accepts(kSector, zeroes_)) << "data went later";
}

TEST_F(ModelDiskTest, DiscardMayShowTheBackingContentWhereThereIsOne) {
  const ContentFunction backing = [](uint64_t offset, absl::Span<uint8_t> out) {
    stamp_content(1000, offset, out);
  };
  ModelDisk model(
      {.length_bytes = kLength, .initial = backing, .backing = backing});
  const auto change = model.begin_write(kSector);
  model.end(change, Outcome::kDone);
  Bytes expected(512);
  backing(0, absl::MakeSpan(expected));
  EXPECT_TRUE(model.end_read(model.begin_read(kSector), expected).has_value());
  model.end(model.begin_discard(kSector), Outcome::kDone);
  EXPECT_FALSE(model.end_read(model.begin_read(kSector), expected).has_value());
}

TEST_F(ModelDiskTest, ResurrectedDataAfterDiscardAndWriteIsCaught) {
  const Bytes old = content(write(kSector));
  model_.end(model_.begin_discard(kSector), Outcome::kDone);
  const Bytes fresh = content(write(kSector));
  EXPECT_FALSE(accepts(kSector, old));
  EXPECT_FALSE(accepts(kSector, zeroes_)) << "a late punch";
  EXPECT_TRUE(accepts(kSector, fresh));
}

TEST_F(ModelDiskTest, WriteZeroesReplaces) {
  const Bytes old = content(write(kSector));
  model_.end(model_.begin_write_zeroes(kSector), Outcome::kDone);
  EXPECT_FALSE(accepts(kSector, old));
  EXPECT_TRUE(accepts(kSector, zeroes_));
}

TEST_F(ModelDiskTest, WithdrawnWriteNeverHappened) {
  const auto change = model_.begin_write(kSector);
  model_.end(change, Outcome::kWithdrawn);
  EXPECT_FALSE(accepts(kSector, content(change)));
  EXPECT_TRUE(accepts(kSector, zeroes_));
}

TEST_F(ModelDiskTest, FailedWriteIsOldOrNewAndReplacesNothing) {
  const Bytes old = content(write(kSector));
  const auto failed = model_.begin_write(kSector);
  model_.end(failed, Outcome::kFailed);
  EXPECT_TRUE(accepts(kSector, old));
  EXPECT_FALSE(accepts(kSector, content(failed)))
      << "the old content was seen already";
  write(kSector);
  EXPECT_FALSE(accepts(kSector, old));
}

TEST_F(ModelDiskTest, RaggedChangesAreJudgedByTheByte) {
  const Bytes base = content(write({0, 1024}));
  const auto part = model_.begin_write({500, 30});
  model_.end(part, Outcome::kDone);
  Bytes expected = base;
  const Bytes middle = content(part);
  std::copy(middle.begin(), middle.end(), expected.begin() + 500);
  EXPECT_TRUE(accepts({0, 1024}, expected));
  EXPECT_TRUE(
      accepts({505, 3}, Bytes(expected.begin() + 505, expected.begin() + 508)));
  EXPECT_FALSE(accepts({0, 1024}, base)) << "a lost ragged write";
  // A read-modify-write that put back old neighbours.
  write({0, 500});
  EXPECT_FALSE(accepts({0, 1024}, expected));
}

TEST_F(ModelDiskTest, ForgetsWhatIsReplaced) {
  for (int i = 0; i < 1000; ++i) {
    write({0, kLength});
    write({3, 700});
    model_.end(model_.begin_discard({512, 1024}), Outcome::kDone);
    model_.end(model_.begin_write({0, kLength}), Outcome::kWithdrawn);
  }
  EXPECT_LE(model_.value_count(), 16u * 6);
}

// A tiny disk that is right unless told otherwise, one request at a time.
struct FaultyDisk {
  enum Fault { kNone, kLoseWrite, kStaleRead, kLatePunch, kWrongPlace };

  explicit FaultyDisk(Fault fault) : fault(fault), now(64 * 512), before(now) {}

  void write(uint64_t offset, const Bytes& data, bool bad) {
    before = now;
    if (bad && fault == kLoseWrite) return;
    if (bad && fault == kWrongPlace) offset ^= 512;
    std::copy(data.begin(), data.end(), now.begin() + offset);
    if (bad && fault == kLatePunch)
      std::fill_n(now.begin() + offset, data.size(), 0);
  }
  Bytes read(uint64_t offset, size_t length, bool bad) const {
    const Bytes& from = bad && fault == kStaleRead ? before : now;
    return Bytes(from.begin() + offset, from.begin() + offset + length);
  }

  const Fault fault;
  Bytes now, before;
};

bool random_run_is_accepted(FaultyDisk::Fault fault, uint64_t seed) {
  std::mt19937_64 random(seed);
  FaultyDisk disk(fault);
  ModelDisk model(
      {.length_bytes = disk.now.size(), .initial = {}, .backing = {}});
  for (int i = 0; i < 3000; ++i) {
    const ByteRange range{512 * (random() % 62), 512 * (1 + random() % 2)};
    if (random() % 2 == 0) {
      const auto change = model.begin_write(range);
      Bytes data(range.length);
      ModelDisk::fill(*change, IoVector(data.data(), data.size()));
      disk.write(range.offset, data, random() % 100 == 0);
      model.end(change, Outcome::kDone);
    } else {
      const auto read = model.begin_read(range);
      // Often: only one read in thirty meets the write that it is stale by.
      if (model.end_read(
              read, disk.read(range.offset, range.length, random() % 2 == 0))) {
        return false;
      }
    }
  }
  return true;
}

TEST(ModelDiskMutants, EveryFaultyDiskIsCaughtAndTheGoodOneIsNot) {
  const uint64_t seed = test_seed();
  EXPECT_TRUE(random_run_is_accepted(FaultyDisk::kNone, seed));
  EXPECT_FALSE(random_run_is_accepted(FaultyDisk::kLoseWrite, seed));
  EXPECT_FALSE(random_run_is_accepted(FaultyDisk::kStaleRead, seed));
  EXPECT_FALSE(random_run_is_accepted(FaultyDisk::kLatePunch, seed));
  EXPECT_FALSE(random_run_is_accepted(FaultyDisk::kWrongPlace, seed));
}

// A correct disk under real concurrency: nothing may be reported.
TEST(ModelDiskThreads, CorrectDiskIsAcceptedFromManyThreads) {
  constexpr uint64_t kLength = 64 * 512;
  std::vector<std::atomic<uint8_t>> disk(kLength);
  ModelDisk model({.length_bytes = kLength, .initial = {}, .backing = {}});
  std::atomic<int> mismatches{0};
  const uint64_t seed = test_seed();
  const auto work = [&](uint64_t thread_seed) {
    std::mt19937_64 random(thread_seed);
    Bytes data;
    for (int i = 0; i < 2000; ++i) {
      const uint64_t offset = random() % (kLength - 2000);
      const ByteRange range{offset, 1 + random() % 2000};
      data.resize(range.length);
      if (random() % 2 == 0) {
        const auto change = model.begin_write(range);
        ModelDisk::fill(*change, IoVector(data.data(), data.size()));
        for (size_t j = 0; j < data.size(); ++j) disk[offset + j] = data[j];
        model.end(change, Outcome::kDone);
      } else {
        const auto read = model.begin_read(range);
        for (size_t j = 0; j < data.size(); ++j) data[j] = disk[offset + j];
        if (model.end_read(read, data)) ++mismatches;
      }
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work, seed + i);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mismatches, 0);
}

}  // namespace
}  // namespace spindle::testing

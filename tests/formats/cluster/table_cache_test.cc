#include "formats/cluster/table_cache.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <future>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/metadata_mutex.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using testing::AccessMatch;
using testing::MemoryDriver;
using testing::ObservingDriver;

constexpr size_t kSliceBytes = 4096;
constexpr uint64_t kSlices = 256;
const AccessMatch kLoads{.purpose = Purpose::kL2Load};

constexpr HostOffset slice_at(uint64_t index) {
  return HostOffset{index * kSliceBytes};
}
// What the file holds: each entry says where it is.
constexpr uint64_t initial(uint64_t slice, uint64_t entry) {
  return slice << 32 | entry;
}

struct Fixture {
  explicit Fixture(uint64_t capacity_slices)
      : memory(std::make_shared<MemoryDriver>()),
        file(std::make_shared<ObservingDriver>(memory)),
        channel(file),
        cache(&channel, Purpose::kL2Load, kSliceBytes,
              capacity_slices * kSliceBytes) {
    std::string bytes(kSlices * kSliceBytes, '\0');
    for (uint64_t s = 0; s < kSlices; ++s) {
      for (uint64_t e = 0; e < kSliceBytes / 8; ++e) {
        store_big64(reinterpret_cast<uint8_t*>(&bytes[s * kSliceBytes + e * 8]),
                    initial(s, e));
      }
    }
    memory->set_content(0, bytes);
  }

  uint64_t loads() const { return file->count(Purpose::kL2Load); }

  std::shared_ptr<MemoryDriver> memory;
  std::shared_ptr<ObservingDriver> file;
  ByteChannel channel;
  TableCache cache;
};

uint64_t entry_of(const SliceRef& slice, size_t entry) {
  MetadataReaderLock lock(&slice->mutex);
  return slice->load64(entry);
}
void set_entry(const SliceRef& slice, size_t entry, uint64_t value) {
  MetadataLock lock(&slice->mutex);
  slice->store64(entry, value);
}

// ---- Hits, misses, eviction -------------------------------------------------

TEST(TableCache, ReadsASliceOnce) {
  Fixture f(64);
  EXPECT_FALSE(f.cache.try_get(slice_at(3)));
  for (int i = 0; i < 3; ++i) {
    const auto slice = f.cache.get(slice_at(3));
    ASSERT_TRUE(slice.ok()) << slice.status();
    EXPECT_EQ((*slice)->host(), slice_at(3));
    EXPECT_EQ(entry_of(*slice, 5), initial(3, 5));
  }
  EXPECT_EQ(f.loads(), 1u);
  EXPECT_EQ(f.cache.counters().misses, 1u);
  EXPECT_TRUE(f.cache.try_get(slice_at(3)));
  EXPECT_EQ(f.file->lock_violation_count(), 0u);
}

TEST(TableCache, BeyondTheEndOfTheFileAreZeroes) {
  Fixture f(64);
  const auto slice = f.cache.get(slice_at(kSlices + 10));
  ASSERT_TRUE(slice.ok());
  EXPECT_EQ(entry_of(*slice, 0), 0u);
}

TEST(TableCache, EvictsCleanSlicesToItsCapacity) {
  Fixture f(16);
  for (uint64_t i = 0; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  uint64_t resident = 0;
  for (uint64_t i = 0; i < kSlices; ++i)
    resident += f.cache.try_get(slice_at(i)) ? 1 : 0;
  EXPECT_LE(resident, 16u);
  EXPECT_EQ(f.cache.counters().evictions, kSlices - resident);
}

TEST(TableCache, ACacheThatCoversAllTablesReadsEachSliceOnce) {
  // Whatever the hash does: no shard may be full while others have room.
  for (const uint64_t slices : {1u, 5u, 32u, 100u}) {
    Fixture f(slices);
    for (int round = 0; round < 3; ++round) {
      for (uint64_t i = 0; i < slices; ++i)
        ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
    }
    EXPECT_EQ(f.cache.counters().misses, slices);
    EXPECT_EQ(f.cache.counters().evictions, 0u);
  }
}

TEST(TableCache, NeverEvictsWhatIsInUse) {
  Fixture f(16);
  std::vector<SliceRef> held;
  for (uint64_t i = 0; i < 24; ++i) {
    auto slice = f.cache.get(slice_at(i));
    ASSERT_TRUE(slice.ok());
    held.push_back(*std::move(slice));
  }
  for (uint64_t i = 24; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  for (uint64_t i = 0; i < 24; ++i) EXPECT_TRUE(f.cache.try_get(slice_at(i)));
}

TEST(TableCache, NeverEvictsWhatIsDirty) {
  Fixture f(16);
  for (uint64_t i = 0; i < 24; ++i) {
    const auto slice = f.cache.get(slice_at(i));
    ASSERT_TRUE(slice.ok());
    set_entry(*slice, 7, 1000 + i);
  }
  EXPECT_TRUE(f.cache.has_dirty());
  EXPECT_TRUE(f.cache.wants_write_back());
  for (uint64_t i = 24; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  for (uint64_t i = 0; i < 24; ++i) {
    const SliceRef slice = f.cache.try_get(slice_at(i));
    ASSERT_TRUE(slice) << i;
    EXPECT_EQ(entry_of(slice, 7), 1000 + i);
  }
  // Written back they are like others.
  std::vector<DirtyPiece> pieces;
  f.cache.take_dirty(&pieces);
  EXPECT_EQ(pieces.size(), 24u);
  pieces.clear();
  EXPECT_FALSE(f.cache.wants_write_back());
  for (uint64_t i = 24; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  uint64_t resident = 0;
  for (uint64_t i = 0; i < kSlices; ++i)
    resident += f.cache.try_get(slice_at(i)) ? 1 : 0;
  EXPECT_LE(resident, 16u);
}

TEST(TableCache, OneMissLooksAtFewSlicesHoweverManyAreInUse) {
  // With everything in use a miss still ends, and the next one that finds
  // something clean takes it.
  Fixture f(8);
  std::vector<SliceRef> held;
  for (uint64_t i = 0; i < kSlices; ++i) {
    auto slice = f.cache.get(slice_at(i));
    ASSERT_TRUE(slice.ok());
    held.push_back(*std::move(slice));
  }
  EXPECT_EQ(f.cache.counters().evictions, 0u);
  held.clear();
  for (uint64_t i = 0; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(kSlices + i)).ok());
  EXPECT_GE(f.cache.counters().evictions, kSlices);
}

// ---- Dirty slices -----------------------------------------------------------

TEST(TableCache, TakesDirtyBytesInOrderOfTheFile) {
  Fixture f(64);
  for (uint64_t i : {9, 2, 5}) {
    const auto slice = f.cache.get(slice_at(i));
    ASSERT_TRUE(slice.ok());
    set_entry(*slice, 70, 4711);  // bytes 560 to 568
  }
  std::vector<DirtyPiece> pieces;
  f.cache.take_dirty(&pieces);
  ASSERT_EQ(pieces.size(), 3u);
  const uint64_t expected[] = {2, 5, 9};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(pieces[i].host.bytes, slice_at(expected[i]).bytes + 512);
    ASSERT_EQ(pieces[i].bytes.size(), 512u);
    EXPECT_EQ(load_big64(&pieces[i].bytes[560 - 512]), 4711u);
    EXPECT_FALSE(pieces[i].has_new_mapping);
  }
  EXPECT_FALSE(f.cache.has_dirty());
  std::vector<DirtyPiece> none;
  f.cache.take_dirty(&none);
  EXPECT_TRUE(none.empty());
}

TEST(TableCache, OnePieceCoversAllChangesOfASlice) {
  Fixture f(64);
  const auto slice = f.cache.get(slice_at(1));
  ASSERT_TRUE(slice.ok());
  set_entry(*slice, 200, 1);
  set_entry(*slice, 10, 2);
  std::vector<DirtyPiece> pieces;
  f.cache.take_dirty(&pieces);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].begin, 0u);
  EXPECT_EQ(pieces[0].bytes.size(), 2048u);
}

TEST(TableCache, ANewMappingIsNotedUntilTheNextSnapshot) {
  Fixture f(64);
  const auto slice = f.cache.get(slice_at(1));
  ASSERT_TRUE(slice.ok());
  {
    MetadataLock lock(&(*slice)->mutex);
    (*slice)->note_new_mapping();
    (*slice)->store64(1, 1);
  }
  std::vector<DirtyPiece> first;
  f.cache.take_dirty(&first);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_TRUE(first[0].has_new_mapping);
  set_entry(*slice, 1, 2);
  std::vector<DirtyPiece> second;
  f.cache.take_dirty(&second);
  ASSERT_EQ(second.size(), 1u);
  EXPECT_FALSE(second[0].has_new_mapping);
  // A round that failed gives it back.
  f.cache.restore(&first);
  std::vector<DirtyPiece> third;
  f.cache.take_dirty(&third);
  ASSERT_EQ(third.size(), 1u);
  EXPECT_TRUE(third[0].has_new_mapping);
}

TEST(TableCache, RestoreMergesWithWhatCameLater) {
  Fixture f(64);
  const auto slice = f.cache.get(slice_at(1));
  ASSERT_TRUE(slice.ok());
  set_entry(*slice, 0, 11);  // the first 512 bytes
  std::vector<DirtyPiece> taken;
  f.cache.take_dirty(&taken);
  set_entry(*slice, 0, 12);
  set_entry(*slice, 128, 13);  // the third
  f.cache.restore(&taken);
  EXPECT_TRUE(taken.empty());
  std::vector<DirtyPiece> pieces;
  f.cache.take_dirty(&pieces);
  ASSERT_EQ(pieces.size(), 1u);
  EXPECT_EQ(pieces[0].begin, 0u);
  ASSERT_EQ(pieces[0].bytes.size(), 1536u);
  EXPECT_EQ(load_big64(pieces[0].bytes.data()), 12u);
  EXPECT_EQ(load_big64(&pieces[0].bytes[1024]), 13u);
}

TEST(TableCache, ATakenPieceKeepsItsSlice) {
  Fixture f(8);
  {
    const auto slice = f.cache.get(slice_at(0));
    ASSERT_TRUE(slice.ok());
    set_entry(*slice, 0, 99);
  }
  std::vector<DirtyPiece> pieces;
  f.cache.take_dirty(&pieces);
  // On its way to the disk: an eviction now would let old bytes be read again.
  for (uint64_t i = 1; i < kSlices; ++i)
    ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  const SliceRef slice = f.cache.try_get(slice_at(0));
  ASSERT_TRUE(slice);
  EXPECT_EQ(entry_of(slice, 0), 99u);
}

// ---- Loading ----------------------------------------------------------------

TEST(TableCache, TwoWhoMissTheSameSliceReadItOnceAndOthersGoOn) {
  Fixture f(64);
  ASSERT_TRUE(f.cache.get(slice_at(20)).ok());
  f.file->reset_counts();
  auto stop = f.file->stop_at(kLoads);
  auto first =
      std::async(std::launch::async, [&] { return f.cache.get(slice_at(4)); });
  stop->wait_until_reached();
  auto second =
      std::async(std::launch::async, [&] { return f.cache.get(slice_at(4)); });
  // While the slice loads: it is not there yet, and every other slice is free,
  // whatever shard it lies in.
  EXPECT_FALSE(f.cache.try_get(slice_at(4)));
  EXPECT_TRUE(f.cache.try_get(slice_at(20)));
  for (uint64_t i = 30; i < 60; ++i) ASSERT_TRUE(f.cache.get(slice_at(i)).ok());
  stop->resume();
  const auto a = first.get();
  const auto b = second.get();
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_EQ(a->get(), b->get());
  EXPECT_EQ(entry_of(*a, 1), initial(4, 1));
  EXPECT_EQ(f.loads(), 31u);
}

TEST(TableCache, AFailedLoadIsReportedAndTriedAgain) {
  Fixture f(64);
  f.file->fail_at(kLoads, EIO);
  EXPECT_FALSE(f.cache.get(slice_at(4)).ok());
  EXPECT_FALSE(f.cache.try_get(slice_at(4)));
  const auto again = f.cache.get(slice_at(4));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(entry_of(*again, 1), initial(4, 1));
  EXPECT_EQ(f.loads(), 2u);
}

TEST(TableCache, WhoWaitsForALoadThatFailsLoadsForItself) {
  Fixture f(64);
  auto stop = f.file->stop_at(kLoads);
  f.file->fail_at(kLoads, EIO);
  auto first = std::async(std::launch::async,
                          [&] { return f.cache.get(slice_at(4)).status(); });
  stop->wait_until_reached();
  std::vector<std::future<absl::Status>> others;
  for (int i = 0; i < 3; ++i) {
    others.push_back(std::async(
        std::launch::async, [&] { return f.cache.get(slice_at(4)).status(); }));
  }
  stop->resume();
  EXPECT_FALSE(first.get().ok());
  for (auto& other : others) EXPECT_TRUE(other.get().ok());
  EXPECT_EQ(f.loads(), 2u);
}

TEST(TableCache, ASliceThatFailedToLoadCanBeEvicted) {
  Fixture f(8);
  f.file->fail_at(kLoads, EIO, 1, ObservingDriver::Repeat::kFromThenOn);
  for (uint64_t i = 0; i < kSlices; ++i)
    ASSERT_FALSE(f.cache.get(slice_at(i)).ok());
  EXPECT_GE(f.cache.counters().evictions, kSlices - 64);
  f.file->clear_failures();
  EXPECT_TRUE(f.cache.get(slice_at(0)).ok());
}

// ---- Together ---------------------------------------------------------------

// Writers own entries of their own and remember them; a flusher writes back,
// now and then failing; evictions reread what was written.
TEST(TableCacheStress, EveryEntryIsWhatItsWriterWroteLast) {
  constexpr int kWriters = 3;
  constexpr int kSteps = 4000;
  const uint64_t seed = testing::test_seed();
  Fixture f(16);
  std::atomic<bool> done{false};
  const auto flush_once = [&](bool fails) {
    std::vector<DirtyPiece> pieces;
    f.cache.take_dirty(&pieces);
    if (fails) {
      f.cache.restore(&pieces);
      return;
    }
    for (const DirtyPiece& piece : pieces) {
      ASSERT_TRUE(f.channel
                      .write(Purpose::kL2Update, piece.bytes.data(),
                             piece.bytes.size(), piece.host.bytes)
                      .ok());
    }
  };
  std::thread flusher([&] {
    for (int round = 0; !done.load(); ++round) flush_once(round % 3 == 1);
  });
  std::vector<std::map<std::pair<uint64_t, size_t>, uint64_t>> models(kWriters);
  std::vector<std::thread> writers;
  for (int t = 0; t < kWriters; ++t) {
    writers.emplace_back([&, t] {
      std::mt19937_64 random(seed + static_cast<uint64_t>(t));
      auto& model = models[static_cast<size_t>(t)];
      for (int step = 0; step < kSteps; ++step) {
        const uint64_t index = random() % 64;
        const size_t entry =
            random() % (kSliceBytes / 8 / kWriters) * kWriters +
            static_cast<size_t>(t);
        const auto slice = f.cache.get(slice_at(index));
        ASSERT_TRUE(slice.ok());
        const auto known = model.find({index, entry});
        ASSERT_EQ(entry_of(*slice, entry),
                  known == model.end() ? initial(index, entry) : known->second);
        if (random() % 4 != 0) continue;
        const uint64_t value = random();
        set_entry(*slice, entry, value);
        model[{index, entry}] = value;
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  done = true;
  flusher.join();
  flush_once(false);
  EXPECT_FALSE(f.cache.has_dirty());
  EXPECT_GT(f.cache.counters().evictions, 0u);
  const std::string bytes = f.memory->content();
  for (const auto& model : models) {
    for (const auto& [place, value] : model) {
      const size_t at = place.first * kSliceBytes + place.second * 8;
      ASSERT_EQ(load_big64(reinterpret_cast<const uint8_t*>(&bytes[at])),
                value);
    }
  }
  EXPECT_EQ(f.file->lock_violation_count(), 0u);
}

}  // namespace
}  // namespace spindle

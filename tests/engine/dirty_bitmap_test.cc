#include "engine/dirty_bitmap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Model = std::vector<bool>;

uint64_t granules(uint64_t length, uint64_t granularity) {
  return (length + granularity - 1) / granularity;
}

void set(Model* model, ByteRange range, uint64_t granularity) {
  for (uint64_t i = range.offset / granularity;
       i < model->size() && i * granularity < range.end(); ++i) {
    (*model)[i] = true;
  }
}

// Every way to ask.
void expect_same(const DirtyBitmap& bitmap, const Model& model) {
  ASSERT_EQ(bitmap.granule_count(), model.size());
  const uint64_t granularity = bitmap.granularity_bytes();
  const auto dirty =
      static_cast<uint64_t>(std::count(model.begin(), model.end(), true));
  EXPECT_EQ(bitmap.dirty_bytes(), dirty * granularity);
  std::vector<uint8_t> bytes((model.size() + 63) / 64 * 8 + 8);
  EXPECT_EQ(bitmap.store_bits(0, absl::MakeSpan(bytes)), dirty != 0);
  EXPECT_EQ(bitmap.any_set(0, model.size()), dirty != 0);
  for (uint64_t i = 0; i < bytes.size() * 8; ++i) {
    const bool bit = (bytes[i / 8] >> (i % 8) & 1) != 0;
    ASSERT_EQ(bit, i < model.size() && model[i]) << i;
  }
  for (uint64_t at = 0; at < bitmap.length_bytes();) {
    const DirtyBitmap::Run run = bitmap.run_at(at);
    ASSERT_GT(run.range.length, 0u);
    ASSERT_EQ(run.range.offset, at);
    for (uint64_t i = at / granularity; i * granularity < run.range.end(); ++i)
      ASSERT_EQ(model[i], run.dirty) << i;
    at = run.range.end();
    if (at < bitmap.length_bytes()) {
      ASSERT_NE(model[at / granularity], run.dirty) << at;
      ASSERT_EQ(bitmap.is_dirty(at), !run.dirty);
    }
  }
}

TEST(DirtyBitmap, ARangeMarksEveryGranuleThatItTouches) {
  DirtyBitmap bitmap(10 * 4096 + 1, 4096);
  EXPECT_EQ(bitmap.granule_count(), 11u);
  EXPECT_FALSE(bitmap.changed());
  bitmap.set({4096, 0});
  EXPECT_EQ(bitmap.dirty_bytes(), 0u);
  EXPECT_FALSE(bitmap.changed());
  bitmap.set({4095, 2});
  EXPECT_TRUE(bitmap.is_dirty(0));
  EXPECT_TRUE(bitmap.is_dirty(8191));
  EXPECT_FALSE(bitmap.is_dirty(8192));
  EXPECT_TRUE(bitmap.changed());
  // As far as the disk goes.
  bitmap.set({10 * 4096, 1 << 20});
  EXPECT_TRUE(bitmap.is_dirty(10 * 4096));
  EXPECT_EQ(bitmap.dirty_bytes(), 3u * 4096);
  bitmap.set({uint64_t{1} << 40, 512});
  EXPECT_EQ(bitmap.run_at(10 * 4096).range, (ByteRange{10 * 4096, 1}));
}

TEST(DirtyBitmap, WhatIsSetAlreadyIsNoChange) {
  DirtyBitmap bitmap(1 << 20, 512);
  bitmap.set({0, 4096});
  bitmap.mark_unchanged();
  bitmap.set({512, 1024});
  EXPECT_FALSE(bitmap.changed());
  bitmap.clear();
  EXPECT_TRUE(bitmap.changed());
}

TEST(DirtyBitmap, AgreesWithAModel) {
  const uint64_t seed = testing::test_seed();
  std::mt19937_64 random(seed);
  for (int round = 0; round < 40; ++round) {
    const uint64_t granularity = uint64_t{512} << random() % 4;
    // Up to three chunks.
    uint64_t length = random() % (90000 * granularity) + 1;
    DirtyBitmap bitmap(length, granularity);
    Model model(granules(length, granularity));
    for (int step = 0; step < 12; ++step) {
      const uint64_t dice = random() % 12;
      const uint64_t first = random() % granules(length, granularity);
      if (dice < 6) {
        const ByteRange range{random() % length,
                              random() % (dice < 2 ? length : 9000) + 1};
        bitmap.set(range);
        set(&model, range, granularity);
      } else if (dice == 6) {
        bitmap.clear();
        model.assign(model.size(), false);
      } else if (dice < 9) {
        length = random() % (90000 * granularity) + 1;
        bitmap.resize(length);
        model.resize(granules(length, granularity));
      } else if (dice == 9) {
        const uint64_t count = random() % 70000;
        bitmap.load_ones(first / 64 * 64, count / 64 * 64);
        set(&model,
            {first / 64 * 64 * granularity, count / 64 * 64 * granularity},
            granularity);
      } else if (dice == 10) {
        std::vector<uint8_t> bytes(random() % 64 * 8);
        for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
        bitmap.load_bits(first / 64 * 64, bytes);
        for (uint64_t i = 0; i < bytes.size() * 8; ++i) {
          const uint64_t at = first / 64 * 64 + i;
          if (at < model.size() && (bytes[i / 8] >> (i % 8) & 1) != 0)
            model[at] = true;
        }
      } else {
        const uint64_t other = uint64_t{512} << random() % 6;
        DirtyBitmap source(length, other);
        for (int i = 0; i < 5; ++i)
          source.set({random() % length, random() % 20000});
        ASSERT_TRUE(bitmap.merge(source).ok());
        for (uint64_t at = 0; at < length; at += other) {
          if (source.is_dirty(at))
            set(&model, {at, std::min(other, length - at)}, granularity);
        }
      }
    }
    SCOPED_TRACE(round);
    ASSERT_NO_FATAL_FAILURE(expect_same(bitmap, model)) << "seed " << seed;
  }
}

TEST(DirtyBitmap, OnesTakeNoMemoryAndCanBeCutAndSetInto) {
  // 4 TiB in granules of 512 bytes: half a gigabyte, if it were there.
  DirtyBitmap bitmap(uint64_t{1} << 42, 512);
  bitmap.load_ones(0, bitmap.granule_count());
  EXPECT_EQ(bitmap.run_at(0).range.length, uint64_t{1} << 42);
  bitmap.set({12345, 1 << 20});
  bitmap.resize((uint64_t{1} << 30) + 512);
  EXPECT_EQ(bitmap.dirty_bytes(), (uint64_t{1} << 30) + 512);
  bitmap.resize(uint64_t{1} << 31);
  EXPECT_EQ(bitmap.run_at(0).range.length, (uint64_t{1} << 30) + 512);
}

TEST(DirtyBitmap, RefusesToMergeADiskOfAnotherLength) {
  DirtyBitmap a(1 << 20, 65536);
  const DirtyBitmap b(2 << 20, 65536);
  const absl::Status status = a.merge(b);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "Bitmaps are of different sizes (destination size is 1048576, "
            "source size is 2097152) and can't be merged");
}

TEST(DirtyBitmap, ThreadsLoseNothing) {
  constexpr int kThreads = 4;
  constexpr uint64_t kLength = uint64_t{4} << 20;
  for (int round = 0; round < 20; ++round) {
    DirtyBitmap bitmap(kLength, 512);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        // Neighbours share words, and all begin in the same fresh chunk.
        for (uint64_t g = static_cast<uint64_t>(t); g < kLength / 512 / 2;
             g += kThreads) {
          bitmap.set({g * 512, 512});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(bitmap.run_at(0).range, (ByteRange{0, kLength / 2}));
    ASSERT_EQ(bitmap.dirty_bytes(), kLength / 2);
  }
}

// Two threads set the first bits of one chunk after another at the same time.
TEST(DirtyBitmap, ThreadsRaceForFreshChunks) {
  constexpr uint64_t kChunkBytes = 32768 * 512;
  constexpr uint64_t kChunks = 3000;
  DirtyBitmap bitmap(kChunks * kChunkBytes, 512);
  std::atomic<uint64_t> arrived{0};
  const auto run = [&](uint64_t thread) {
    for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
      ++arrived;
      while (arrived.load() < 2 * (chunk + 1)) {
      }
      bitmap.set({chunk * kChunkBytes + thread * 65536, 512});
    }
  };
  std::thread other(run, 1);
  run(0);
  other.join();
  EXPECT_EQ(bitmap.dirty_bytes(), kChunks * 2 * 512);
}

TEST(DirtyRecorder, RecordsAtTheEndOfAChange) {
  DirtyRecorder recorder;
  auto a = std::make_shared<DirtyBitmap>(1 << 20, 65536);
  auto b = std::make_shared<DirtyBitmap>(1 << 20, 512);
  {
    const DirtyRecorder::Recording nobody(&recorder, {0, 512});
  }
  recorder.set_bitmaps({a, b});
  {
    const DirtyRecorder::Recording recording(&recorder, {65536, 512});
    EXPECT_EQ(a->dirty_bytes(), 0u);
  }
  EXPECT_EQ(a->dirty_bytes(), 65536u);
  EXPECT_EQ(b->dirty_bytes(), 512u);
  recorder.set_bitmaps({});
  {
    const DirtyRecorder::Recording nobody(&recorder, {0, 512});
  }
  EXPECT_EQ(a->dirty_bytes(), 65536u);
}

}  // namespace
}  // namespace spindle

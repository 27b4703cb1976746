// Writers of every kind side by side, while bitmaps come and go, the image is
// repaired and snapshots are made: a bitmap has every granule that was written
// while it followed, and none that nobody wrote.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/memory_driver.h"
#include "tests/support/seed.h"
#include "threadpool/default_executor.h"

namespace spindle::qcow2 {
namespace {

using testing::MemoryImage;
using testing::MemoryImageOptions;

constexpr uint64_t kCluster = 4096;
constexpr uint64_t kGranule = 512;
constexpr uint64_t kDiskBytes = 256 * kCluster;
constexpr size_t kGranules = kDiskBytes / kGranule;
constexpr int kRounds = 12;
constexpr int kSyncWriters = 3;
constexpr int kAsyncWriters = 2;

using Granules = std::vector<bool>;

void add(ByteRange range, Granules* granules) {
  for (uint64_t i = range.offset / kGranule; i < range.end() / kGranule; ++i)
    (*granules)[i] = true;
}

// Bitmap number n follows writes for certain while this is 2 * n + 1.
using Phase = std::atomic<int>;

class Writer {
 public:
  Writer(const Phase* phase, uint64_t seed)
      : phase_(*phase),
        random_(seed),
        written_(kGranules),
        must_(kRounds, Granules(kGranules)) {}
  virtual ~Writer() = default;

  void run() {
    while (phase_.load() < 2 * kRounds) {
      const int before = phase_.load();
      const std::vector<ByteRange> ranges = write_some();
      const int after = phase_.load();
      for (const ByteRange& range : ranges) {
        add(range, &written_);
        if (before == after && before % 2 == 1)
          add(range, &must_[static_cast<size_t>(before / 2)]);
      }
    }
  }
  const Granules& written() const { return written_; }
  const Granules& must(int round) const {
    return must_[static_cast<size_t>(round)];
  }

 protected:
  virtual std::vector<ByteRange> write_some() = 0;
  uint64_t draw(uint64_t below) { return random_() % below; }
  ByteRange draw_range(uint64_t unit) {
    const uint64_t units = kDiskBytes / unit;
    const uint64_t first = draw(units);
    return {first * unit,
            unit * (1 + draw(std::min<uint64_t>(units - first, 4)))};
  }

 private:
  const Phase& phase_;
  std::mt19937_64 random_;
  Granules written_;
  std::vector<Granules> must_;
};

// Straight to the driver.
class SyncWriter final : public Writer {
 public:
  SyncWriter(BlockDriver* driver, const Phase* phase, uint64_t seed)
      : Writer(phase, seed), driver_(*driver) {}

 private:
  std::vector<ByteRange> write_some() override {
    const uint64_t dice = draw(12);
    ByteRange range = draw_range(dice < 6 ? kSectorSizeBytes : kCluster);
    absl::Status status;
    if (dice == 6) {
      status = driver_.discard(range);
    } else if (dice == 7) {
      status = driver_.write_zeroes(range, {.may_unmap = true});
    } else if (dice == 8) {
      status = driver_.flush();
      range = {};
    } else {
      std::string bytes(range.length, static_cast<char>(1 + draw(250)));
      const IoVector qiov(bytes.data(), bytes.size());
      const Sector sector = Sector::from_byte_offset(range.offset);
      status = dice == 9 ? driver_.write_compressed(qiov, sector)
                         : driver_.write(qiov, sector);
    }
    EXPECT_TRUE(status.ok()) << status;
    return {range};
  }

  BlockDriver& driver_;
};

// Through a device, several at a time, and where it can in place.
class AsyncWriter final : public Writer {
 public:
  AsyncWriter(BlockDevice* device, const Phase* phase, uint64_t seed)
      : Writer(phase, seed), device_(*device) {}

 private:
  std::vector<ByteRange> write_some() override {
    std::vector<ByteRange> ranges;
    std::string bytes(4 * kCluster, static_cast<char>(1 + draw(250)));
    std::atomic<int> waiting{0};
    const auto done = [&waiting](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      --waiting;
    };
    for (int i = 0; i < 6; ++i) {
      const uint64_t dice = draw(8);
      const ByteRange range =
          draw_range(dice < 5 ? kSectorSizeBytes : kCluster);
      const IoVector qiov(bytes.data(), range.length);
      const Sector sector = Sector::from_byte_offset(range.offset);
      ++waiting;
      if (dice == 5) {
        device_.aio_discard(range, done);
      } else if (dice == 6) {
        device_.aio_write_zeroes(range, {}, done);
      } else if (dice == 7) {
        device_.aio_write_compressed(sector, qiov, done);
      } else {
        device_.aio_writev(sector, qiov, done);
      }
      ranges.push_back(range);
    }
    while (waiting.load() != 0) {
      device_.reap();
      std::this_thread::yield();
    }
    return ranges;
  }

  BlockDevice& device_;
};

// What happens to the image meanwhile.
void disturb(BlockDriver* driver, uint64_t seed, Phase* phase) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < kRounds; ++round) {
    const std::string name = absl::StrCat("b", round);
    ASSERT_TRUE(driver->add_bitmap({name, kGranule, true}).ok());
    phase->store(2 * round + 1);
    for (int i = 0; i < 4; ++i) {
      const uint64_t dice = random() % 4;
      absl::Status status;
      if (dice == 0) {
        CheckOptions repair;
        repair.fix_leaks = repair.fix_errors = true;
        status = driver->check(repair).status();
      } else if (dice == 1) {
        SnapshotInfo wanted;
        wanted.name = "s";
        status = driver->create_snapshot(wanted).status();
        if (status.ok()) status = driver->delete_snapshot("s");
      } else if (dice == 2) {
        status = driver->add_bitmap({"other", 65536, false});
        const auto all = driver->find_bitmap("all");
        if (status.ok()) status = driver->merge_bitmap("other", **all);
        if (status.ok()) status = driver->clear_bitmap("other");
        if (status.ok()) status = driver->remove_bitmap("other");
      } else {
        status = driver->list_bitmaps().status();
      }
      ASSERT_TRUE(status.ok()) << status;
    }
    phase->store(2 * round + 2);
    ASSERT_TRUE(driver->enable_bitmap(name, false).ok());
  }
}

Granules dirty_in(BlockDriver& driver, const std::string& name) {
  Granules granules(kGranules);
  const auto bits = driver.find_bitmap(name);
  EXPECT_TRUE(bits.ok()) << bits.status();
  if (!bits.ok()) return granules;
  for (size_t i = 0; i < kGranules; ++i)
    granules[i] = (*bits)->is_dirty(i * kGranule);
  return granules;
}

void judge(BlockDriver& driver,
           const std::vector<std::unique_ptr<Writer>>& writers) {
  Granules written(kGranules);
  for (const auto& writer : writers) {
    for (size_t i = 0; i < kGranules; ++i)
      if (writer->written()[i]) written[i] = true;
  }
  EXPECT_TRUE(dirty_in(driver, "all") == written);
  for (int round = 0; round < kRounds; ++round) {
    const Granules dirty = dirty_in(driver, absl::StrCat("b", round));
    for (size_t i = 0; i < kGranules; ++i) {
      for (const auto& writer : writers)
        ASSERT_TRUE(dirty[i] || !writer->must(round)[i]) << round << " " << i;
      ASSERT_TRUE(written[i] || !dirty[i]) << round << " " << i;
    }
  }
}

TEST(BitmapStress, MissesNoWriteAndInventsNone) {
  const uint64_t seed = testing::test_seed();
  MemoryImageOptions options;
  options.size_bytes = kDiskBytes;
  options.create["cluster_size"] = absl::StrCat(kCluster);
  MemoryImage image(options);
  ASSERT_TRUE(image.driver().add_bitmap({"all", kGranule, true}).ok());
  const auto executor = create_executor({});
  ASSERT_TRUE(executor.ok());
  {
    // The driver is the image's.
    auto device = BlockDevice::create(
        std::shared_ptr<BlockDriver>(&image.driver(), [](BlockDriver*) {}),
        executor->get(), {.run_in_place = true});
    ASSERT_TRUE(device.ok()) << device.status();
    Phase phase{0};
    std::vector<std::unique_ptr<Writer>> writers;
    for (int i = 0; i < kSyncWriters; ++i) {
      writers.push_back(std::make_unique<SyncWriter>(
          &image.driver(), &phase, seed + static_cast<uint64_t>(i)));
    }
    for (int i = 0; i < kAsyncWriters; ++i) {
      writers.push_back(std::make_unique<AsyncWriter>(
          device->get(), &phase, seed + 100 + static_cast<uint64_t>(i)));
    }
    std::vector<std::thread> threads;
    for (const auto& writer : writers)
      threads.emplace_back([&writer] { writer->run(); });
    disturb(&image.driver(), seed, &phase);
    phase.store(2 * kRounds);
    for (std::thread& thread : threads) thread.join();
    ASSERT_NO_FATAL_FAILURE(judge(image.driver(), writers));
    ASSERT_TRUE((*device)->close().ok());
    // As they were stored.
    ASSERT_TRUE(image.open(/*read_only=*/true).ok());
    ASSERT_NO_FATAL_FAILURE(judge(image.driver(), writers));
  }
  const absl::Status clean = image.close_and_check();
  EXPECT_TRUE(clean.ok()) << clean;
}

}  // namespace
}  // namespace spindle::qcow2

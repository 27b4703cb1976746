// The power goes at any moment: what a flush made durable is there, what came
// later is there or not, sector by sector; no block of the file has two owners,
// none is named that the header does not count, and none shows what was there
// before.
#include <algorithm>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "engine/byte_order.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "formats/vdi/layout.h"
#include "formats/vdi/vdi_format.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/write_log.h"
#include "tests/formats/vdi/memory_vdi.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kBlocks = 5;
constexpr uint64_t kDiskBytes = kBlocks * kMiB;

// What a guest did, and at which moments of the log.
struct Write {
  ByteRange range;
  char value;
  size_t begin;
};
struct Flush {
  size_t begin;
  size_t end;
};

// The values that a byte may have after a cut at `moment`.
std::set<char> possible(const std::vector<Write>& writes, size_t flushed,
                        size_t moment, uint64_t byte) {
  std::set<char> values{'\0'};
  for (const Write& write : writes) {
    if (write.begin > moment || byte < write.range.offset ||
        byte >= write.range.end()) {
      continue;
    }
    // One thread: a write that a flush followed replaces what was before.
    if (write.begin < flushed) values.clear();
    values.insert(write.value);
  }
  return values;
}

void expect_sound_map(const std::string& file) {
  const uint32_t allocated = load_little32(&file[vdi::kAllocatedOffset]);
  std::set<uint32_t> seen;
  for (uint64_t index = 0; index < kBlocks; ++index) {
    const uint32_t block = load_little32(&file[512 + index * 4]);
    if (!vdi::is_stored(block)) continue;
    EXPECT_TRUE(seen.insert(block).second) << "block " << block << " twice";
    EXPECT_LT(block, allocated) << "the next writer would take it";
  }
}

class PowerCut : public ::testing::TestWithParam<bool> {};

TEST_P(PowerCut, LeavesWhatWasFlushed) {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 5; ++round) {
    std::string initial = new_vdi(kDiskBytes);
    // Behind the map there may be blocks left over from an earlier cut.
    if (GetParam()) {
      initial.resize(kFirstBlock + 2 * kMiB, 'x');
      store_little32(&initial[vdi::kAllocatedOffset], 2);
    }
    const auto log =
        std::make_shared<LoggingDriver>(initial, [](int) { return true; });
    const auto driver =
        vdi::vdi_format()->open(log, OpenOptions{}, OpenContext{});
    ASSERT_TRUE(driver.ok()) << driver.status();
    std::vector<Write> writes;
    std::vector<Flush> flushes;
    for (char value = 1; value <= 24; ++value) {
      if (random() % 4 == 0) {
        const size_t begin = log->mark();
        ASSERT_TRUE((*driver)->flush().ok());
        flushes.push_back({begin, log->mark()});
      }
      const uint64_t sectors = 1 + random() % 8;
      const uint64_t offset = random() % (kDiskBytes / 512 - sectors) * 512;
      const ByteRange range{offset, sectors * 512};
      writes.push_back({range, value, log->mark()});
      ASSERT_TRUE(write_fill(**driver, range, value).ok());
    }
    ASSERT_TRUE((*driver)->close().ok());

    std::vector<LogEntry> entries = log->entries();
    std::vector<size_t> moments;
    for (int i = 0; i < 25; ++i) moments.push_back(random() % entries.size());
    std::sort(moments.begin(), moments.end());
    CutDisk disk(initial, std::move(entries));
    for (const size_t moment : moments) {
      const std::string file = disk.cut(moment, &random);
      SCOPED_TRACE(moment);
      expect_sound_map(file);
      MemoryVdi image(file);
      ASSERT_TRUE(image.open().ok());
      const std::string content = read_range(*image.driver, {0, kDiskBytes});
      ASSERT_EQ(content.size(), kDiskBytes);
      size_t flushed = 0;
      for (const Flush& flush : flushes) {
        if (flush.end <= moment) flushed = flush.begin;
      }
      for (uint64_t byte = 0; byte < kDiskBytes; byte += 512) {
        ASSERT_TRUE(
            possible(writes, flushed, moment, byte).contains(content[byte]))
            << "byte " << byte << " is " << int{content[byte]};
      }
    }
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Images, PowerCut, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "with_left_over_blocks" : "new";
                         });

}  // namespace
}  // namespace spindle::testing

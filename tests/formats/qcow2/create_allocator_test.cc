#include "formats/qcow2/create_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "formats/qcow2/refcount_entry.h"
#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

constexpr uint32_t kBits = 9;
constexpr uint64_t kCluster = uint64_t{1} << kBits;
constexpr uint32_t kOrder16 = 4;
// 512-byte clusters, 16-bit refcounts.
constexpr uint64_t kPerBlock = 256;

CreateAllocator::RetireTable no_retiring() {
  return [](uint64_t, absl::Span<const uint64_t>) {
    ADD_FAILURE() << "a table was given up";
    return absl::OkStatus();
  };
}

// The clusters that the rendered refcount blocks count.
std::vector<bool> counted(const CreateAllocator& allocator, uint32_t order) {
  const uint64_t per_block = (kCluster * 8) >> order;
  std::vector<bool> result;
  std::vector<uint8_t> block;
  const absl::Span<const uint64_t> table = allocator.refcount_table();
  for (uint64_t i = 0; i < table.size(); ++i) {
    if (table[i] == 0) continue;
    allocator.render_block(i, &block);
    EXPECT_EQ(block.size(), kCluster);
    result.resize((i + 1) * per_block);
    for (uint64_t j = 0; j < per_block; ++j) {
      const uint64_t count = load_refcount(block.data(), order, j);
      EXPECT_LE(count, 1u);
      result[i * per_block + j] = count != 0;
    }
  }
  return result;
}

uint64_t count_of(const std::vector<bool>& clusters) {
  return static_cast<uint64_t>(
      std::count(clusters.begin(), clusters.end(), true));
}

TEST(CreateAllocator, BeginsWithTheThreeClustersOfAnEmptyImage) {
  CreateAllocator allocator(kBits, kOrder16, no_retiring());
  EXPECT_EQ(allocator.refcount_table_offset(), kCluster);
  ASSERT_EQ(allocator.refcount_table().size(), kCluster / 8);
  EXPECT_EQ(allocator.refcount_table()[0], 2 * kCluster);
  EXPECT_EQ(allocator.refcount_table()[1], 0u);
  EXPECT_EQ(count_of(counted(allocator, kOrder16)), 3u);
  EXPECT_EQ(*allocator.allocate(1), 3 * kCluster);
  EXPECT_EQ(*allocator.allocate(2), 4 * kCluster);
  EXPECT_EQ(count_of(counted(allocator, kOrder16)), 6u);
}

TEST(CreateAllocator, AllocatesAtAPlaceWhatIsFreeThere) {
  CreateAllocator allocator(kBits, kOrder16, no_retiring());
  EXPECT_EQ(*allocator.allocate_at(10 * kCluster, 4), 4u);
  EXPECT_EQ(*allocator.allocate_at(8 * kCluster, 5), 2u);
  EXPECT_EQ(*allocator.allocate_at(10 * kCluster, 1), 0u);
  EXPECT_EQ(*allocator.allocate_at(0, 3), 0u);
  // The gap takes what fits it; what does not goes behind.
  EXPECT_EQ(*allocator.allocate(6), 14 * kCluster);
  EXPECT_EQ(*allocator.allocate_at(3 * kCluster, 5), 5u);
  EXPECT_EQ(count_of(counted(allocator, kOrder16)), 20u);
}

TEST(CreateAllocator, ANewBlockGoesBehindTheRunThatNeededIt) {
  CreateAllocator allocator(kBits, kOrder16, no_retiring());
  EXPECT_EQ(*allocator.allocate(kPerBlock - 3), 3 * kCluster);
  EXPECT_EQ(allocator.refcount_table()[1], 0u);
  EXPECT_EQ(*allocator.allocate(1), kPerBlock * kCluster);
  EXPECT_EQ(allocator.refcount_table()[1], (kPerBlock + 1) * kCluster);
  EXPECT_EQ(count_of(counted(allocator, kOrder16)), kPerBlock + 2);
}

// Exactly the header, the table, its blocks and what was handed out are in use,
// whatever the width, and nothing is handed out twice.
TEST(CreateAllocator, CountsExactlyWhatIsInUse) {
  std::mt19937_64 random(testing::test_seed());
  for (uint32_t order = 0; order <= 6; ++order) {
    SCOPED_TRACE(order);
    const uint64_t per_block = (kCluster * 8) >> order;
    // Twice what the first table covers.
    const uint64_t wanted = 2 * per_block * kCluster / 8;
    std::vector<std::pair<uint64_t, std::vector<uint64_t>>> retired;
    CreateAllocator allocator(
        kBits, order, [&](uint64_t offset, absl::Span<const uint64_t> table) {
          retired.emplace_back(
              offset, std::vector<uint64_t>(table.begin(), table.end()));
          return absl::OkStatus();
        });
    std::vector<bool> expected;
    const auto use = [&](uint64_t offset, uint64_t count) {
      EXPECT_EQ(offset % kCluster, 0u);
      const uint64_t first = offset / kCluster;
      if (expected.size() < first + count) expected.resize(first + count);
      for (uint64_t c = first; c < first + count; ++c) {
        EXPECT_FALSE(expected[c]) << c;
        expected[c] = true;
      }
    };
    for (uint64_t done = 0; done < wanted;) {
      const uint64_t count = 1 + random() % per_block;
      if (random() % 4 == 0) {
        // Right behind everything, and a gap.
        const uint64_t at = (expected.size() + random() % 8) * kCluster;
        const auto got = allocator.allocate_at(at, count);
        ASSERT_TRUE(got.ok()) << got.status();
        use(at, *got);
        done += *got;
      } else {
        const auto offset = allocator.allocate(count);
        ASSERT_TRUE(offset.ok()) << offset.status();
        use(*offset, count);
        done += count;
      }
    }
    use(0, 1);
    use(allocator.refcount_table_offset(),
        allocator.refcount_table().size() * 8 / kCluster);
    for (uint64_t block : allocator.refcount_table())
      if (block != 0) use(block, 1);
    std::vector<bool> in_blocks = counted(allocator, order);
    expected.resize(std::max(expected.size(), in_blocks.size()));
    in_blocks.resize(expected.size());
    EXPECT_TRUE(in_blocks == expected);

    ASSERT_FALSE(retired.empty());
    EXPECT_EQ(retired[0].first, kCluster);
    EXPECT_EQ(retired[0].second.size(), kCluster / 8);
    EXPECT_EQ(retired[0].second[0], 2 * kCluster);
  }
}

TEST(CreateAllocator, AnErrorOfTheRetiredTableIsPassedOn) {
  CreateAllocator allocator(kBits, 6, [](uint64_t, absl::Span<const uint64_t>) {
    return absl::ResourceExhaustedError("full");
  });
  absl::Status status;
  for (int i = 0; i < 100 && status.ok(); ++i)
    status = allocator.allocate(64).status();
  EXPECT_EQ(status.message(), "full");
}

TEST(CreateAllocator, WhatIsReservedBehindTheEndNeedsNoMoreBlocks) {
  for (uint64_t count : {1, 1000, 100000}) {
    SCOPED_TRACE(count);
    int retired = 0;
    CreateAllocator allocator(kBits, kOrder16,
                              [&](uint64_t, absl::Span<const uint64_t>) {
                                ++retired;
                                return absl::OkStatus();
                              });
    ASSERT_TRUE(allocator.allocate(10).ok());
    const auto begin = allocator.reserve_behind_end(count);
    ASSERT_TRUE(begin.ok()) << begin.status();
    EXPECT_EQ(retired, 1);
    EXPECT_GE(*begin, 13 * kCluster);
    const std::vector<uint64_t> table(allocator.refcount_table().begin(),
                                      allocator.refcount_table().end());
    EXPECT_EQ(*allocator.allocate_at(*begin, count), count);
    EXPECT_EQ(retired, 1);
    EXPECT_TRUE(allocator.refcount_table() == absl::MakeConstSpan(table));
  }
}

TEST(CreateAllocator, ARefcountTableOverTheLimitIsRefused) {
  CreateAllocator allocator(kBits, 6, no_retiring());
  const auto begin = allocator.reserve_behind_end(uint64_t{1} << 40);
  EXPECT_TRUE(absl::IsResourceExhausted(begin.status())) << begin.status();
  // As it was before.
  EXPECT_EQ(allocator.refcount_table_offset(), kCluster);
  EXPECT_EQ(*allocator.allocate(1), 3 * kCluster);
}

}  // namespace
}  // namespace spindle::qcow2

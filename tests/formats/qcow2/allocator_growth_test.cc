// New refcount blocks and a longer refcount table: allocator_growth.cc.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "formats/qcow2/allocator.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"

namespace spindle::qcow2 {
namespace {

using testing::check_image_bytes;
using testing::get_big64;
using testing::Leaks;
using testing::MemoryImage;
using testing::MemoryImageOptions;
using testing::OpenImage;
using testing::qemu_image_bytes;
using testing::set_big64;

constexpr uint64_t kMib = uint64_t{1} << 20;

// ---- A new block ------------------------------------------------------------

// 512-byte clusters, 64-bit refcounts: a block counts 64 clusters.
TEST(AllocatorGrowth, ABlockIsZeroedCountedAndNamedAfterItIsOnTheDisk) {
  OpenImage open(qemu_image_bytes(kMib, "cluster_size=512,refcount_bits=64"));
  Allocator& allocator = open.image->allocator();
  ASSERT_EQ(allocator.refcount_blocks().size(), 1u);
  const uint64_t table = get_big64(open.memory->content(), 48);
  while (allocator.refcount_blocks().size() == 1)
    ASSERT_TRUE(allocator.allocate(1).ok());
  const std::vector<HostOffset> blocks = allocator.refcount_blocks();
  ASSERT_EQ(blocks.size(), 2u);
  // It lies in the range that it counts, itself included.
  EXPECT_EQ(blocks[1].bytes / 512 / 64, 1u);
  EXPECT_EQ(open.refcount(blocks[1].bytes / 512), 1u);
  EXPECT_EQ(open.image->extents().find_overlap({blocks[1].bytes, 512}),
            MetadataKind::kRefcountBlock);
  // The table names it only when a flush round has written it.
  EXPECT_EQ(get_big64(open.memory->content(), table + 8), 0u);
  ASSERT_TRUE(open.image->rounds().flush().ok());
  EXPECT_EQ(get_big64(open.memory->content(), table + 8), blocks[1].bytes);
  EXPECT_EQ(open.file->lock_violation_count(), 0u);
  EXPECT_TRUE(check_image_bytes(open.memory->content(), Leaks::kAllowed).ok());
}

TEST(AllocatorGrowth, ABlockThatCannotBeMadeIsTriedAgain) {
  // A file whose end lies far behind what is counted: the block's cluster has
  // to be zeroed.
  std::string bytes =
      qemu_image_bytes(kMib, "cluster_size=512,refcount_bits=64");
  bytes.resize(200 * 512, '\x55');
  OpenImage open(bytes);
  Allocator& allocator = open.image->allocator();
  open.file->fail_at({.purpose = Purpose::kRefblockAlloc}, EIO);
  absl::Status status;
  while (status.ok() && allocator.refcount_blocks().size() == 1)
    status = allocator.allocate(1).status();
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(open.file->failure_count(), 1u);
  EXPECT_EQ(allocator.refcount_blocks().size(), 1u);
  const auto again = allocator.allocate(1);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->clusters.first, 64u);
  const std::vector<HostOffset> blocks = allocator.refcount_blocks();
  ASSERT_EQ(blocks.size(), 2u);
  // What lay there counts nothing.
  for (uint64_t c = 66; c < 128; ++c) EXPECT_EQ(open.refcount(c), 0u) << c;
}

TEST(AllocatorGrowth, NeverMakesARefcountBlockOfMetadata) {
  // 512-byte clusters, 64-bit refcounts: a block for 64 clusters.  The second
  // block is lost, so that clusters from 64 on count as free, and an L2 table
  // stands at cluster 65, where the new block for cluster 64 would go.
  constexpr uint64_t kTables = 40;
  std::vector<std::string> commands;
  for (uint64_t i = 0; i < kTables; ++i)
    commands.push_back(absl::StrCat("write ", i * 32768, " 512"));
  MemoryImageOptions options;
  std::string& bytes = options.bytes;
  bytes =
      qemu_image_bytes(2 * kMib, "cluster_size=512,refcount_bits=64", commands);
  const uint64_t l1 = get_big64(bytes, 40);
  const auto move_table = [&](uint64_t l1_index, uint64_t to) {
    const uint64_t entry = get_big64(bytes, l1 + l1_index * 8);
    bytes.replace(to, 512, bytes.substr(entry & 0x00fffffffffffe00, 512));
    set_big64(&bytes, l1 + l1_index * 8, uint64_t{1} << 63 | to);
  };
  set_big64(&bytes, get_big64(bytes, 48) + 8, 0);
  bytes.resize((bytes.size() + 511) / 512 * 512 + 512);
  for (uint64_t i = 0; i < kTables; ++i) {
    const uint64_t table = get_big64(bytes, l1 + i * 8) & 0x00fffffffffffe00;
    ASSERT_NE(table, uint64_t{65} * 512);
    if (table == uint64_t{64} * 512) move_table(i, bytes.size() - 512);
  }
  move_table(0, 65 * 512);

  MemoryImage image(options);
  const absl::Status status = image.write({512, 512}, 9);
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_TRUE((image.memory().content({0, 512})[79] & 2) != 0);
  EXPECT_EQ(image.memory().content({65 * 512, 512}),
            bytes.substr(65 * 512, 512));
  EXPECT_TRUE(image.reads_as({0, 512}, 0xcd));
}

// ---- A longer table ---------------------------------------------------------

struct Growth {
  uint32_t refcount_bits;
  uint64_t size_bytes;
};
// With 512-byte clusters a refcount table of one cluster covers 64 blocks.
constexpr Growth kGrowth16{16, 9 * kMib};
constexpr Growth kGrowth64{64, 3 * kMib};

MemoryImageOptions growth_options(const Growth& growth) {
  MemoryImageOptions options;
  options.bytes = qemu_image_bytes(
      growth.size_bytes,
      absl::StrCat("cluster_size=512,refcount_bits=", growth.refcount_bits));
  return options;
}
uint8_t fill_of(uint64_t offset) {
  return static_cast<uint8_t>(1 + offset / 32768 % 250);
}
absl::Status fill(MemoryImage& image, uint64_t from, uint64_t to) {
  for (uint64_t at = from; at < to; at += 32768) {
    absl::Status status = image.write({at, 32768}, fill_of(at));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}
void expect_filled(MemoryImage& image, uint64_t to) {
  for (uint64_t at = 0; at < to; at += 32768)
    ASSERT_TRUE(image.reads_as({at, 32768}, fill_of(at)));
}
uint64_t table_offset(MemoryImage& image) {
  return get_big64(image.memory().content({0, 512}), 48);
}

class RefcountTableGrowth : public ::testing::TestWithParam<Growth> {};

TEST_P(RefcountTableGrowth, MovesTheTableAndStaysClean) {
  MemoryImage image(growth_options(GetParam()));
  const uint64_t before = table_offset(image);
  ASSERT_TRUE(fill(image, 0, GetParam().size_bytes).ok());
  expect_filled(image, GetParam().size_bytes);
  EXPECT_NE(table_offset(image), before);
  ASSERT_TRUE(image.close_and_check().ok());
  ASSERT_TRUE(image.open().ok());
  expect_filled(image, GetParam().size_bytes);
  // What remains free goes on being handed out.
  ASSERT_TRUE(image.discard({0, kMib}).ok());
  ASSERT_TRUE(image.flush().ok());
  ASSERT_TRUE(fill(image, 0, kMib).ok());
  ASSERT_TRUE(image.close_and_check().ok());
}

TEST_P(RefcountTableGrowth, AFailureAtAnyStepLosesNothing) {
  // How many accesses of each purpose one growth makes.
  const struct {
    Purpose purpose;
    AccessKind kind;
    int nth;
  } steps[] = {
      {Purpose::kRefblockAlloc, AccessKind::kWrite, 1},
      {Purpose::kRefblockAlloc, AccessKind::kWrite, 2},
      {Purpose::kReftableGrow, AccessKind::kWrite, 1},
      {Purpose::kHeaderUpdate, AccessKind::kWrite, 1},
      {Purpose::kFlushToDisk, AccessKind::kFlush, 1},
      {Purpose::kFlushToDisk, AccessKind::kFlush, 2},
      {Purpose::kFlushToDisk, AccessKind::kFlush, 3},
      {Purpose::kFlushToDisk, AccessKind::kFlush, 4},
      {Purpose::kFlushToDisk, AccessKind::kFlush, 5},
      {Purpose::kRefblockUpdate, AccessKind::kWrite, 1},
      {Purpose::kRefblockAllocHookup, AccessKind::kWrite, 1},
      {Purpose::kL2Update, AccessKind::kWrite, 1},
  };
  // Everything up to shortly before the table is full, once.
  std::string almost_full;
  uint64_t filled = 0;
  {
    MemoryImage image(growth_options(GetParam()));
    const uint64_t before = table_offset(image);
    while (true) {
      ASSERT_TRUE(image.flush().ok());
      almost_full = image.memory().content();
      ASSERT_TRUE(fill(image, filled, filled + 32768).ok());
      if (table_offset(image) != before) break;
      filled += 32768;
    }
  }
  for (const auto& step : steps) {
    SCOPED_TRACE(absl::StrCat(purpose_name(step.purpose), " ", step.nth));
    MemoryImageOptions options;
    options.bytes = almost_full;
    MemoryImage image(options);
    image.file().fail_at({.purpose = step.purpose, .kind = step.kind}, ENOSPC,
                         step.nth);
    const absl::Status failed = fill(image, filled, filled + 65536);
    // Not every step is reached by every width; what failed says so.
    if (image.file().failure_count() != 0 && !failed.ok()) {
      EXPECT_EQ(failed.code(), absl::StatusCode::kResourceExhausted) << failed;
    }
    image.file().clear_failures();
    // As after a crash: what is on the disk is consistent.
    EXPECT_TRUE(
        check_image_bytes(image.memory().content(), Leaks::kAllowed).ok());
    expect_filled(image, filled);
    // The guest tries again, with partial writes into fresh clusters too: what
    // surrounds them must not show what the failed growth left.
    ASSERT_TRUE(fill(image, filled, filled + 65536).ok());
    expect_filled(image, filled + 65536);
    ASSERT_TRUE(image.close_and_check(Leaks::kAllowed).ok());
    ASSERT_TRUE(image.open().ok());
    expect_filled(image, filled + 65536);
  }
}

INSTANTIATE_TEST_SUITE_P(RefcountBits, RefcountTableGrowth,
                         ::testing::Values(kGrowth16, kGrowth64),
                         [](const auto& info) {
                           return absl::StrCat(info.param.refcount_bits);
                         });

// Bytes that a growth wrote before it failed lie beyond all that is in use;
// clusters that reach them later are not fresh.
TEST(AllocatorGrowth, WhatAFailedGrowthWroteIsNotTakenForZeroes) {
  const Growth growth{64, 3 * kMib};
  OpenImage open(
      qemu_image_bytes(growth.size_bytes, "cluster_size=512,refcount_bits=64"));
  Allocator& allocator = open.image->allocator();
  open.file->fail_at({.purpose = Purpose::kHeaderUpdate}, EIO);
  uint64_t end = 0;
  while (true) {
    const auto allocation = allocator.allocate(8);
    if (!allocation.ok()) break;
    end = allocation->clusters.end();
  }
  ASSERT_EQ(open.file->failure_count(), 1u);
  const uint64_t written_end = open.memory->length_bytes();
  ASSERT_GT(written_end, (end + 8) * 512);
  // The next growth succeeds; all up to there was written to.
  for (uint64_t at = 0; at * 512 < written_end;) {
    const auto allocation = allocator.allocate(8);
    ASSERT_TRUE(allocation.ok()) << allocation.status();
    at = allocation->clusters.first;
    if (at * 512 >= written_end) break;
    EXPECT_FALSE(allocation->reads_as_zeroes) << at;
  }
}

}  // namespace
}  // namespace spindle::qcow2

#include "formats/qcow/allocator.h"

#include <cerrno>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "engine/errors.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/qcow/layout.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace spindle::qcow {
namespace {

constexpr uint64_t kCluster = 4096;

struct Fixture {
  explicit Fixture(uint64_t file_bytes)
      : allocator(kCluster, file_bytes, &extents) {}

  // Where the next clusters are; 0 on error.
  uint64_t take(uint64_t bytes, bool is_zero) {
    const auto allocation = allocator.allocate(bytes);
    EXPECT_TRUE(allocation.ok()) << allocation.status();
    if (!allocation.ok()) return 0;
    EXPECT_EQ(allocation->range.length, bytes);
    EXPECT_EQ(allocation->reads_as_zeroes, is_zero);
    return allocation->range.offset;
  }
  uint64_t take_compressed(uint64_t bytes) {
    const auto allocation = allocator.allocate_compressed(bytes);
    EXPECT_TRUE(allocation.ok()) << allocation.status();
    return allocation.ok() ? allocation->range.offset : 0;
  }

  MetadataExtents extents;
  Allocator allocator;
};

TEST(Allocator, GoesToTheEndOfTheFile) {
  Fixture fixture(560);
  EXPECT_EQ(fixture.take(kCluster, true), 1 * kCluster);
  EXPECT_EQ(fixture.take(3 * kCluster, true), 2 * kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 5 * kCluster);
}

// As QEMU, which counts the file in sectors.
TEST(Allocator, PacksCompressedDataBySectors) {
  Fixture fixture(560);
  EXPECT_EQ(fixture.take(kCluster, true), kCluster);
  EXPECT_EQ(fixture.take_compressed(1110), 2 * kCluster);
  EXPECT_EQ(fixture.take_compressed(512), 2 * kCluster + 3 * 512);
  EXPECT_EQ(fixture.take_compressed(1), 2 * kCluster + 4 * 512);
  EXPECT_EQ(fixture.take(kCluster, true), 3 * kCluster);
}

// The file may end within its last cluster.
TEST(Allocator, LeavesTheLastClusterAlone) {
  Fixture fixture(kCluster + 512);
  EXPECT_FALSE(fixture.allocator.is_beyond_end({kCluster, kCluster}));
  EXPECT_TRUE(fixture.allocator.is_beyond_end({kCluster + 512, kCluster}));
  EXPECT_EQ(fixture.take_compressed(100), 2 * kCluster);
  EXPECT_FALSE(fixture.allocator.is_beyond_end({2 * kCluster, 100}));
}

TEST(Allocator, TheFileMayHaveGrown) {
  Fixture fixture(kCluster);
  fixture.allocator.note_file_end(5 * kCluster - 100);
  EXPECT_FALSE(fixture.allocator.is_beyond_end({4 * kCluster, kCluster}));
  EXPECT_EQ(fixture.take(kCluster, true), 5 * kCluster);
  fixture.allocator.note_file_end(kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 6 * kCluster);
}

TEST(Allocator, UsesAgainWhatCameToNothing) {
  Fixture fixture(kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 1 * kCluster);
  EXPECT_EQ(fixture.take(2 * kCluster, true), 2 * kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 4 * kCluster);
  // In the middle: half of it, then the rest.  Something may be there now.
  fixture.allocator.free_unpublished({2 * kCluster, 2 * kCluster});
  EXPECT_EQ(fixture.take(kCluster, false), 2 * kCluster);
  EXPECT_EQ(fixture.take_compressed(700), 3 * kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 5 * kCluster);
  EXPECT_EQ(fixture.take_compressed(100), 3 * kCluster + 1024);
  // At the end: what was given back before it goes with it.
  fixture.allocator.free_unpublished({4 * kCluster, kCluster});
  fixture.allocator.free_unpublished({5 * kCluster, kCluster});
  EXPECT_EQ(fixture.take(3 * kCluster, false), 4 * kCluster);
  EXPECT_EQ(fixture.take(kCluster, true), 7 * kCluster);
}

TEST(Allocator, KnowsHowLongTheFileMustBe) {
  Fixture fixture(kCluster);
  EXPECT_EQ(fixture.allocator.published_end_bytes(), 0u);
  EXPECT_EQ(fixture.take(2 * kCluster, true), kCluster);
  EXPECT_EQ(fixture.allocator.published_end_bytes(), 0u);
  fixture.allocator.note_published({2 * kCluster, kCluster});
  EXPECT_EQ(fixture.allocator.published_end_bytes(), 3 * kCluster);
  fixture.allocator.note_published({kCluster, kCluster});
  EXPECT_EQ(fixture.allocator.published_end_bytes(), 3 * kCluster);
  // QEMU's files end with the last byte of compressed data.
  fixture.allocator.note_published({4 * kCluster, 17});
  EXPECT_EQ(fixture.allocator.published_end_bytes(), 4 * kCluster + 17);
}

TEST(Allocator, RefusesWhatNoFileHas) {
  Fixture fixture(kMaxFileBytes / 2);
  EXPECT_EQ(errno_of(fixture.allocator.allocate(kMaxFileBytes / 2).status()),
            ENOSPC);
  EXPECT_EQ(errno_of(fixture.allocator.allocate(~uint64_t{0}).status()),
            ENOSPC);
  EXPECT_TRUE(fixture.allocator.allocate(kCluster).ok());
}

TEST(Allocator, NeverHandsOutMetadata) {
  Fixture fixture(kCluster);
  ASSERT_TRUE(
      fixture.extents.add(MetadataKind::kL2Table, {2 * kCluster, kCluster})
          .ok());
  EXPECT_EQ(fixture.take(kCluster, true), kCluster);
  EXPECT_TRUE(absl::IsDataLoss(fixture.allocator.allocate(kCluster).status()));
}

TEST(Allocator, NothingHasTwoOwners) {
  std::mt19937_64 random(testing::test_seed());
  Fixture fixture(5000);
  std::vector<ByteRange> owned;
  std::set<uint64_t> sectors;
  for (int i = 0; i < 5000; ++i) {
    if (random() % 3 == 0 && !owned.empty()) {
      const size_t which = random() % owned.size();
      const ByteRange range = owned[which];
      owned.erase(owned.begin() + static_cast<ptrdiff_t>(which));
      fixture.allocator.free_unpublished(range);
      for (uint64_t at = range.offset; at < range.end(); at += 512)
        ASSERT_EQ(sectors.erase(at / 512), 1u);
      continue;
    }
    const bool compressed = random() % 2 == 0;
    const auto allocation =
        compressed ? fixture.allocator.allocate_compressed(1 + random() % 4095)
                   : fixture.allocator.allocate((1 + random() % 3) * kCluster);
    ASSERT_TRUE(allocation.ok());
    const ByteRange range = allocation->range;
    ASSERT_EQ(range.offset % (compressed ? 512 : kCluster), 0u);
    ASSERT_GE(range.offset, 2 * kCluster);
    ASSERT_FALSE(fixture.allocator.is_beyond_end(range));
    for (uint64_t at = range.offset; at < range.end(); at += 512)
      ASSERT_TRUE(sectors.insert(at / 512).second) << at;
    owned.push_back(range);
  }
}

}  // namespace
}  // namespace spindle::qcow

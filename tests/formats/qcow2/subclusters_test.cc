#include "formats/qcow2/subclusters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/support/seed.h"

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kHost = uint64_t{7} << 20;
constexpr uint64_t kOwn = kHost | kEntryCopied;

Geometry extended(uint32_t cluster_bits) {
  Geometry geometry;
  geometry.cluster_bits = cluster_bits;
  geometry.extended_l2 = true;
  return geometry;
}

// A cluster as a list of kinds, to compare with.
using Kinds = std::array<ClusterKind, kSubclustersPerCluster>;

Kinds kinds_of(L2Entry entry) {
  Kinds kinds;
  for (uint32_t i = 0; i < kSubclustersPerCluster; ++i)
    kinds[i] = subcluster_kind(entry, i);
  return kinds;
}

// A valid entry with a random bitmap, in runs of random lengths.
L2Entry random_entry(std::mt19937_64* random, bool has_host) {
  uint64_t bitmap = 0;
  for (uint32_t i = 0; i < kSubclustersPerCluster;) {
    const uint32_t end =
        std::min<uint32_t>(i + 1 + static_cast<uint32_t>((*random)() % 12),
                           kSubclustersPerCluster);
    const uint64_t dice = (*random)() % 3;
    if (dice == 0) bitmap = bitmap_after_zero(bitmap, {i, end});
    if (dice == 1 && has_host) bitmap = bitmap_after_write(bitmap, {i, end});
    i = end;
  }
  return L2Entry(has_host ? kOwn : 0, bitmap);
}

SubclusterSpan random_span(std::mt19937_64* random) {
  const auto first =
      static_cast<uint32_t>((*random)() % kSubclustersPerCluster);
  const auto count =
      static_cast<uint32_t>(1 + (*random)() % (kSubclustersPerCluster - first));
  return {first, first + count};
}

TEST(Subclusters, BitsAreThoseOfTheSpecification) {
  EXPECT_EQ(allocated_bits({0, 1}), 1u);
  EXPECT_EQ(allocated_bits({31, 32}), uint64_t{1} << 31);
  EXPECT_EQ(allocated_bits({0, 32}), kBitmapAllAllocated);
  EXPECT_EQ(zero_bits({0, 1}), uint64_t{1} << 32);
  EXPECT_EQ(zero_bits({31, 32}), uint64_t{1} << 63);
  EXPECT_EQ(zero_bits({0, 32}), kBitmapAllZero);
  EXPECT_EQ(allocated_bits({4, 4}), 0u);
}

TEST(Subclusters, KindsFollowDescriptorAndBitmap) {
  const uint64_t bitmap = allocated_bits({3, 4}) | zero_bits({5, 6});
  const L2Entry with_host(kOwn, bitmap);
  EXPECT_EQ(subcluster_kind(with_host, 3), ClusterKind::kNormal);
  EXPECT_EQ(subcluster_kind(with_host, 5), ClusterKind::kZeroAllocated);
  EXPECT_EQ(subcluster_kind(with_host, 4), ClusterKind::kUnallocated);
  const L2Entry without_host(0, zero_bits({5, 6}));
  EXPECT_EQ(subcluster_kind(without_host, 5), ClusterKind::kZeroPlain);
  EXPECT_EQ(subcluster_kind(without_host, 4), ClusterKind::kUnallocated);
  const L2Entry compressed(kL2Compressed | 12345);
  EXPECT_EQ(subcluster_kind(compressed, 9), ClusterKind::kCompressed);
  EXPECT_EQ(end_of_same_kind(compressed, 9), kSubclustersPerCluster);
}

TEST(Subclusters, ContradictionsAreInvalid) {
  EXPECT_TRUE(is_valid_bitmap(L2Entry()));
  EXPECT_TRUE(is_valid_bitmap(L2Entry(kOwn)));
  EXPECT_TRUE(is_valid_bitmap(L2Entry(kOwn, kBitmapAllAllocated)));
  EXPECT_TRUE(is_valid_bitmap(L2Entry(0, kBitmapAllZero)));
  EXPECT_FALSE(is_valid_bitmap(L2Entry(0, 1)));
  EXPECT_FALSE(is_valid_bitmap(
      L2Entry(kOwn, allocated_bits({8, 9}) | zero_bits({8, 9}))));
  EXPECT_TRUE(is_valid_bitmap(L2Entry(kL2Compressed | 512)));
}

TEST(Subclusters, RunsEndWhereTheKindChanges) {
  std::mt19937_64 random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const L2Entry entry = random_entry(&random, round % 2 == 0);
    ASSERT_TRUE(is_valid_bitmap(entry));
    const Kinds kinds = kinds_of(entry);
    for (uint32_t i = 0; i < kSubclustersPerCluster; ++i) {
      uint32_t end = i;
      while (end < kSubclustersPerCluster && kinds[end] == kinds[i]) ++end;
      ASSERT_EQ(end_of_same_kind(entry, i), end) << entry.bitmap();
    }
  }
}

TEST(Subclusters, ChangesTouchNothingElse) {
  std::mt19937_64 random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const L2Entry old = random_entry(&random, /*has_host=*/true);
    const SubclusterSpan span = random_span(&random);
    Kinds written = kinds_of(old);
    Kinds zeroed = written;
    std::fill(&written[span.first], written.data() + span.end,
              ClusterKind::kNormal);
    std::fill(&zeroed[span.first], zeroed.data() + span.end,
              ClusterKind::kZeroAllocated);
    EXPECT_EQ(kinds_of(old.with_bitmap(bitmap_after_write(old.bitmap(), span))),
              written);
    EXPECT_EQ(kinds_of(old.with_bitmap(bitmap_after_zero(old.bitmap(), span))),
              zeroed);
  }
}

TEST(Subclusters, ACopyTakesWhatIsAllocatedAndWhatLiesBetween) {
  std::mt19937_64 random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const L2Entry old = random_entry(&random, /*has_host=*/true);
    const Kinds kinds = kinds_of(old);
    const SubclusterSpan written = random_span(&random);
    SubclusterSpan expected = written;
    for (uint32_t i = 0; i < kSubclustersPerCluster; ++i) {
      if (kinds[i] != ClusterKind::kNormal) continue;
      expected.first = std::min(expected.first, i);
      expected.end = std::max(expected.end, i + 1);
    }
    EXPECT_EQ(span_to_copy(old, written), expected) << old.bitmap();
  }
  const SubclusterSpan written{4, 6};
  // Nothing else is there.
  EXPECT_EQ(span_to_copy(L2Entry(), written), written);
  EXPECT_EQ(span_to_copy(L2Entry(0, kBitmapAllZero), written), written);
  EXPECT_EQ(span_to_copy(L2Entry(kHost, kBitmapAllZero), written), written);
  // There is no half of a compressed cluster.
  EXPECT_EQ(span_to_copy(L2Entry(kL2Compressed | 512), written),
            (SubclusterSpan{0, kSubclustersPerCluster}));
}

TEST(Subclusters, SpansCoverWhatARangeTouches) {
  const Geometry geometry = extended(16);  // subclusters of 2 KiB
  const uint64_t cluster = 5 << 16;
  EXPECT_EQ(touched_span(geometry, cluster, cluster, cluster + 1),
            (SubclusterSpan{0, 1}));
  EXPECT_EQ(touched_span(geometry, cluster, cluster + 2047, cluster + 2049),
            (SubclusterSpan{0, 2}));
  EXPECT_EQ(touched_span(geometry, cluster, cluster + 2048, cluster + 4096),
            (SubclusterSpan{1, 2}));
  EXPECT_EQ(touched_span(geometry, cluster, 0, cluster + 1),
            (SubclusterSpan{0, 1}));
  EXPECT_EQ(touched_span(geometry, cluster, cluster + 65535, cluster << 1),
            (SubclusterSpan{31, 32}));
}

TEST(Subclusters, KindRunsAreInBytes) {
  const Geometry geometry = extended(14);  // subclusters of 512 bytes
  const L2Entry entry(kOwn, allocated_bits({2, 5}) | zero_bits({5, 32}));
  const uint64_t cluster = uint64_t{3} << 14;
  EXPECT_EQ(kind_run(geometry, entry, {cluster}).bytes, 1024u);
  const KindRun data = kind_run(geometry, entry, {cluster + 1024 + 100});
  EXPECT_EQ(data.kind, ClusterKind::kNormal);
  EXPECT_EQ(data.bytes, 3 * 512u - 100);
  const KindRun zeroes = kind_run(geometry, entry, {cluster + 16383});
  EXPECT_EQ(zeroes.kind, ClusterKind::kZeroAllocated);
  EXPECT_EQ(zeroes.bytes, 1u);
  // Without subclusters a cluster is of one kind.
  Geometry standard;
  standard.cluster_bits = 14;
  const KindRun whole =
      kind_run(standard, L2Entry(kOwn | kL2ZeroFlag), {cluster + 100});
  EXPECT_EQ(whole.kind, ClusterKind::kZeroAllocated);
  EXPECT_EQ(whole.bytes, 16384u - 100);
}

TEST(Subclusters, TablesOfLongEntriesCoverHalf) {
  const Geometry geometry = extended(16);
  EXPECT_EQ(geometry.l2_bits(), 12u);
  EXPECT_EQ(geometry.l2_entries_per_slice(), 256u);
  EXPECT_EQ(geometry.subcluster_bytes(), 2048u);
  EXPECT_EQ(geometry.l1_index({uint64_t{1} << 28}), 1u);
  EXPECT_EQ(geometry.l2_index({(uint64_t{1} << 28) + (3 << 16)}), 3u);
}

}  // namespace
}  // namespace spindle::qcow2

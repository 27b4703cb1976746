#include "tests/differential/geometry.h"

#include <set>
#include <string>

#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

TEST(Geometry, FullProductHasEveryLegalCombinationOnce) {
  std::set<std::string> names;
  for (const Geometry& geometry : all_geometries()) {
    EXPECT_TRUE(names.insert(geometry.name()).second) << geometry.name();
    EXPECT_TRUE(geometry.is_legal());
  }
  // Without backing file: compressed in 2 ways, or preallocated in 4 with 3
  // kinds of data file; with one of the 5 kinds: compressed in 2 ways, or not,
  // or a data file.  What is not compressed may be encrypted in 2 ways.
  const size_t storages = (2 + 4 * 3 * 3) + 5 * (2 + 2 * 3);
  // 13 cluster sizes, 8 of them with subclusters; 7 widths.
  const size_t version3 = (13 + 8) * 7 * storages;
  const size_t version2 = 13 * ((1 + 4 * 3) + 5 * (1 + 3));
  EXPECT_EQ(names.size(), version3 + version2);
}

TEST(Geometry, PairwiseSelectionHasEveryClusterSizeWithEveryWidth) {
  std::set<std::pair<uint64_t, int>> pairs;
  const auto chosen = pairwise_geometries();
  for (const Geometry& geometry : chosen) {
    pairs.emplace(geometry.cluster_bytes, geometry.refcount_bits);
  }
  EXPECT_EQ(pairs.size(), 13u * 7);
  EXPECT_LT(chosen.size(), 150u);
}

}  // namespace
}  // namespace spindle::testing

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
    EXPECT_TRUE(geometry.compat == "1.1" || geometry.refcount_bits == 16);
  }
  // 13 cluster sizes; 7 widths in version 3 and one in version 2; 6 kinds of
  // backing, of which "none" comes with 4 kinds of preallocation.
  // The 8 largest sizes of version 3 also with extended L2 entries.
  EXPECT_EQ(names.size(), 13u * 8 * 9 + 8 * 7 * 9);
}

TEST(Geometry, PairwiseSelectionHasEveryClusterSizeWithEveryWidth) {
  std::set<std::pair<uint64_t, int>> pairs;
  const auto chosen = pairwise_geometries();
  for (const Geometry& geometry : chosen) {
    pairs.emplace(geometry.cluster_bytes, geometry.refcount_bits);
  }
  EXPECT_EQ(pairs.size(), 13u * 7);
  EXPECT_LT(chosen.size(), all_geometries().size() / 5);
}

}  // namespace
}  // namespace spindle::testing

#include "engine/sector.h"

#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(Sector, ConvertsToAndFromBytes) {
  EXPECT_EQ(Sector(3).byte_offset(), 1536u);
  EXPECT_EQ(Sector::from_byte_offset(1536), Sector(3));
  EXPECT_LT(Sector(2), Sector(3));
  EXPECT_TRUE(is_sector_aligned(1024));
  EXPECT_FALSE(is_sector_aligned(1025));
}

TEST(ByteRange, ContainsAndOverlaps) {
  const ByteRange range{10, 5};
  EXPECT_EQ(range.end(), 15u);
  EXPECT_TRUE(range.contains({10, 5}));
  EXPECT_TRUE(range.contains({12, 0}));
  EXPECT_FALSE(range.contains({10, 6}));
  EXPECT_FALSE(range.contains({9, 2}));
  EXPECT_TRUE(range.overlaps({14, 1}));
  EXPECT_FALSE(range.overlaps({15, 1}));
  EXPECT_TRUE(range.overlaps({0, 11}));
  EXPECT_FALSE(range.overlaps({0, 10}));
}

}  // namespace
}  // namespace spindle

#include "engine/checked_math.h"

#include <cstdint>

#include "gtest/gtest.h"

namespace spindle {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST(CheckedMath, GivesNothingOnOverflow) {
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_EQ(checked_add(kMax, 1), std::nullopt);
  EXPECT_EQ(checked_multiply(kMax / 3, 3), kMax);
  EXPECT_EQ(checked_multiply(kMax / 3 + 1, 3), std::nullopt);
  EXPECT_EQ(checked_multiply(0, kMax), 0u);
}

TEST(CheckedMath, MakesOnlyRangesWhoseEndFits) {
  EXPECT_EQ(make_byte_range(5, 7), (ByteRange{5, 7}));
  EXPECT_TRUE(make_byte_range(kMax, 0).has_value());
  EXPECT_FALSE(make_byte_range(kMax, 1).has_value());
}

TEST(CheckedMath, AlignsUpAndDown) {
  for (uint64_t value = 0; value < 64; ++value) {
    for (uint64_t alignment = 1; alignment <= 32; alignment *= 2) {
      const uint64_t down = value - value % alignment;
      const uint64_t up = value % alignment == 0 ? value : down + alignment;
      EXPECT_EQ(align_down(value, alignment), down);
      EXPECT_EQ(align_up(value, alignment), up);
      EXPECT_EQ(checked_align_up(value, alignment), up);
      EXPECT_EQ(is_aligned(value, alignment), value == down);
    }
  }
  EXPECT_EQ(checked_align_up(kMax, 512), std::nullopt);
  EXPECT_EQ(checked_align_up(kMax - 511, 512), kMax - 511);
}

TEST(CheckedMath, DividesRoundingUpWithoutOverflow) {
  EXPECT_EQ(divide_round_up(0, 4), 0u);
  EXPECT_EQ(divide_round_up(4, 4), 1u);
  EXPECT_EQ(divide_round_up(5, 4), 2u);
  EXPECT_EQ(divide_round_up(kMax, 2), kMax / 2 + 1);
}

TEST(CheckedMath, KnowsPowersOfTwo) {
  EXPECT_FALSE(is_power_of_two(0));
  EXPECT_TRUE(is_power_of_two(1));
  EXPECT_TRUE(is_power_of_two(uint64_t{1} << 63));
  EXPECT_FALSE(is_power_of_two(12));
}

}  // namespace
}  // namespace spindle

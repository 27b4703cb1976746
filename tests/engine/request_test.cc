#include "engine/request.h"

#include <limits>

#include "gtest/gtest.h"

namespace spindle {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(SaturatedByteOffset, OfSectorsThatHaveOne) {
  constexpr uint64_t kLast = kMax / kSectorSizeBytes;
  for (uint64_t index : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 40, kLast}) {
    EXPECT_EQ(saturated_byte_offset(Sector(index)), index * kSectorSizeBytes);
  }
}

// Not back at the start of the image, as a shift alone would give.
TEST(SaturatedByteOffset, OfSectorsBeyondAllBytesIsBeyondEveryImage) {
  for (uint64_t index :
       {kMax / kSectorSizeBytes + 1, uint64_t{1} << 63, kMax}) {
    const uint64_t offset = saturated_byte_offset(Sector(index));
    EXPECT_EQ(offset, kMax - (kSectorSizeBytes - 1)) << index;
    EXPECT_TRUE(is_sector_aligned(offset));
  }
}

TEST(RequestSpec, IsAReadOfNothingUnlessToldOtherwise) {
  const RequestSpec spec;
  EXPECT_EQ(spec.kind, RequestKind::kRead);
  EXPECT_FALSE(spec.by_sector);
  EXPECT_FALSE(spec.write_flags.fua);
  EXPECT_FALSE(spec.zeroes_flags.may_unmap);
  EXPECT_FALSE(spec.zeroes_flags.no_fallback);
  EXPECT_TRUE(spec.range().empty());
}

TEST(RequestSpec, RangeIsOffsetAndLength) {
  const RequestSpec spec{.kind = RequestKind::kWrite, .offset = 7, .length = 9};
  EXPECT_EQ(spec.range(), (ByteRange{7, 9}));
  EXPECT_EQ(spec.range().end(), 16u);
}

// What counts by kind has a place for each.
TEST(RequestKind, AllAreCounted) {
  EXPECT_EQ(static_cast<size_t>(RequestKind::kBlockStatus) + 1,
            kRequestKindCount);
}

}  // namespace
}  // namespace spindle

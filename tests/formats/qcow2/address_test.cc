#include "formats/qcow2/address.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace spindle::qcow2 {
namespace {

TEST(Geometry, SplitsGuestOffsets) {
  for (uint32_t bits = 9; bits <= 21; ++bits) {
    Geometry geometry;
    geometry.cluster_bits = bits;
    const uint64_t entries = geometry.cluster_bytes() / 8;
    for (uint64_t cluster : {uint64_t{0}, uint64_t{1}, entries - 1, entries,
                             5 * entries + 3, uint64_t{1} << 33}) {
      const GuestOffset guest{cluster * geometry.cluster_bytes() + 77};
      EXPECT_EQ(geometry.l1_index(guest), cluster / entries) << bits;
      EXPECT_EQ(geometry.l2_index(guest), cluster % entries) << bits;
      EXPECT_EQ(geometry.offset_in_cluster(guest.bytes), 77u);
      EXPECT_EQ(geometry.cluster_start(guest.bytes), guest.bytes - 77);
      EXPECT_EQ(geometry.cluster_index(guest.bytes), cluster);
    }
  }
}

TEST(Geometry, CountsClusters) {
  Geometry geometry;
  geometry.cluster_bits = 12;
  EXPECT_EQ(geometry.clusters_for(0), 0u);
  EXPECT_EQ(geometry.clusters_for(1), 1u);
  EXPECT_EQ(geometry.clusters_for(4096), 1u);
  EXPECT_EQ(geometry.clusters_for(4097), 2u);
  // The largest size that a header may state.
  EXPECT_EQ(geometry.clusters_for((uint64_t{1} << 63) - 1), uint64_t{1} << 51);
}

TEST(Geometry, KnowsEveryRefcountWidth) {
  Geometry geometry;
  geometry.cluster_bits = 16;
  const struct {
    uint32_t order;
    uint64_t entries;
    uint64_t most;
  } cases[] = {{0, 524288, 1},         {1, 262144, 3},
               {2, 131072, 15},        {3, 65536, 255},
               {4, 32768, 65535},      {5, 16384, 0xffffffff},
               {6, 8192, ~uint64_t{0}}};
  for (const auto& c : cases) {
    geometry.refcount_order = c.order;
    EXPECT_EQ(geometry.refblock_entries(), c.entries) << c.order;
    EXPECT_EQ(geometry.max_refcount(), c.most) << c.order;
  }
}

TEST(Geometry, SlicesDivideTables) {
  Geometry geometry;
  geometry.cluster_bits = 16;
  geometry.slice_bytes = 4096;
  EXPECT_EQ(geometry.l2_entries_per_slice(), 512u);
  EXPECT_EQ(geometry.guest_bytes_per_slice(), uint64_t{512} << 16);
}

}  // namespace
}  // namespace spindle::qcow2

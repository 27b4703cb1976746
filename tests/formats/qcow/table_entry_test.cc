#include "formats/qcow/table_entry.h"

#include <cstdint>

#include "formats/qcow/address.h"
#include "gtest/gtest.h"

namespace spindle::qcow {
namespace {

Geometry geometry_of(uint32_t cluster_bits) {
  Geometry geometry;
  geometry.cluster_bits = cluster_bits;
  return geometry;
}

TEST(L2Entry, Kinds) {
  EXPECT_EQ(L2Entry().kind(), ClusterKind::kUnallocated);
  EXPECT_EQ(L2Entry(512).kind(), ClusterKind::kNormal);
  EXPECT_EQ(L2Entry(kL2Compressed).kind(), ClusterKind::kCompressed);
  EXPECT_EQ(L2Entry().place(geometry_of(12)), ByteRange());
  EXPECT_EQ(L2Entry(0x20200).place(geometry_of(12)),
            (ByteRange{0x20200, 4096}));
  EXPECT_EQ(L2Entry::normal({0x3000}), L2Entry(0x3000));
}

// As `qemu-img convert -c` wrote it: 1,110 bytes.
TEST(L2Entry, CompressedAsQemuWritesIt) {
  const Geometry geometry = geometry_of(12);
  const L2Entry entry(0xa2b0000000002000);
  EXPECT_EQ(entry.place(geometry), (ByteRange{0x2000, 1110}));
  EXPECT_EQ(L2Entry::compressed_at({0x2000}, 1110, geometry), entry);
}

TEST(L2Entry, CompressedAtEveryClusterSize) {
  for (uint32_t bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    const Geometry geometry = geometry_of(bits);
    const uint64_t last = (uint64_t{1} << (63 - bits)) - 1;
    for (const uint64_t bytes : {uint64_t{1}, geometry.cluster_bytes() - 1}) {
      for (const uint64_t offset : {uint64_t{0}, uint64_t{0x12345}, last}) {
        ASSERT_TRUE(L2Entry::can_name_compressed({offset}, geometry));
        const L2Entry entry = L2Entry::compressed_at({offset}, bytes, geometry);
        EXPECT_EQ(entry.kind(), ClusterKind::kCompressed);
        EXPECT_EQ(entry.place(geometry), (ByteRange{offset, bytes})) << bits;
      }
    }
    EXPECT_FALSE(L2Entry::can_name_compressed({last + 1}, geometry));
  }
}

TEST(Geometry, FindsEntries) {
  Geometry geometry = geometry_of(9);
  geometry.l2_bits = 12;
  geometry.slice_bytes = 4096;
  EXPECT_EQ(geometry.l2_table_bytes(), 32768u);
  const GuestOffset guest{(uint64_t{3} << 21) + 700 * 512 + 17};
  EXPECT_EQ(geometry.l1_index(guest), 3u);
  EXPECT_EQ(geometry.l2_index(guest), 700u);
  EXPECT_EQ(geometry.index_in_slice(guest), 700u % 512);
  EXPECT_EQ(geometry.guest_bytes_per_slice(), 512u * 512);
  EXPECT_EQ(geometry.bytes_left_in_slice(guest),
            (1024 - 700) * uint64_t{512} - 17);
  geometry.l2_bits = 6;
  geometry.slice_bytes = 512;
  EXPECT_EQ(geometry.l1_index({64 * 512}), 1u);
  EXPECT_EQ(geometry.bytes_left_in_slice({64 * 512 - 1}), 1u);
}

}  // namespace
}  // namespace spindle::qcow

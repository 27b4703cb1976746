#include "formats/qcow2/table_entry.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace spindle::qcow2 {
namespace {

constexpr uint64_t kCopied = uint64_t{1} << 63;
constexpr uint64_t kCompressed = uint64_t{1} << 62;

Geometry geometry_with(uint32_t cluster_bits) {
  Geometry geometry;
  geometry.cluster_bits = cluster_bits;
  return geometry;
}

TEST(TableEntry, TellsTheKindsApart) {
  const struct {
    uint64_t raw;
    ClusterKind kind;
    bool copied;
    bool writable;
  } cases[] = {
      {0, ClusterKind::kUnallocated, false, false},
      // At offset 0 of an external data file; load_entry() tells.
      {kCopied, ClusterKind::kNormal, true, true},
      {1, ClusterKind::kZeroPlain, false, false},
      {kCopied | 1, ClusterKind::kZeroPlain, true, false},
      {0x50001, ClusterKind::kZeroAllocated, false, false},
      {kCopied | 0x50001, ClusterKind::kZeroAllocated, true, false},
      {0x50000, ClusterKind::kNormal, false, false},
      {kCopied | 0x50000, ClusterKind::kNormal, true, true},
      {kCompressed | 0x50000, ClusterKind::kCompressed, false, false},
      // Bit 0 belongs to the offset here.
      {kCompressed | 0x50001, ClusterKind::kCompressed, false, false},
      {kCopied | kCompressed | 0x5000, ClusterKind::kCompressed, true, false},
  };
  for (const auto& c : cases) {
    const L2Entry entry(c.raw);
    EXPECT_EQ(entry.kind(), c.kind) << std::hex << c.raw;
    EXPECT_EQ(entry.copied(), c.copied) << std::hex << c.raw;
    EXPECT_EQ(entry.writable_in_place(), c.writable) << std::hex << c.raw;
  }
}

TEST(TableEntry, MasksReservedBits) {
  // Bits 1 to 8 and 56 to 61 are reserved in a standard descriptor.
  const L2Entry entry(kCopied | 0x3f000000000501fe);
  EXPECT_EQ(entry.kind(), ClusterKind::kNormal);
  EXPECT_EQ(entry.host().bytes, 0x50000u);
  EXPECT_EQ(L2Entry(0x1fe).kind(), ClusterKind::kUnallocated);
  EXPECT_EQ(L2Entry(uint64_t{0x3f} << 56).kind(), ClusterKind::kUnallocated);
}

TEST(TableEntry, MakesEntries) {
  EXPECT_EQ(L2Entry::normal(HostOffset{0x70000}).raw(), kCopied | 0x70000);
  EXPECT_EQ(L2Entry::zero_plain(Geometry()).raw(), 1u);
}

TEST(TableEntry, ReadsCompressedDescriptorsOfEveryClusterSize) {
  for (uint32_t bits = 9; bits <= 21; ++bits) {
    const Geometry geometry = geometry_with(bits);
    // The specification: x = 62 - (cluster_bits - 8).
    const uint32_t x = 62 - (bits - 8);
    const uint64_t most_sectors = (uint64_t{1} << (62 - x)) - 1;
    for (uint64_t extra : {uint64_t{0}, uint64_t{1}, most_sectors}) {
      for (uint64_t offset : {uint64_t{0x10000}, uint64_t{0x10000} + 511,
                              uint64_t{0x123456789}, (uint64_t{1} << x) - 1}) {
        const L2Entry entry(kCompressed | extra << x | offset);
        const CompressedExtent extent = entry.compressed(geometry);
        ASSERT_EQ(extent.host.bytes, offset) << bits;
        // From the first byte to the end of the last sector.
        ASSERT_EQ((offset + extent.bytes) % 512, 0u) << bits;
        ASSERT_EQ((offset + extent.bytes) / 512 - offset / 512, extra + 1)
            << bits;
        const HostClusters used = entry.references(geometry);
        ASSERT_EQ(used.first, offset >> bits);
        ASSERT_EQ(used.end(), ((offset + extent.bytes - 1) >> bits) + 1);
        ASSERT_LE(used.count, 3u);
      }
    }
  }
}

TEST(TableEntry, ACompressedClusterCanReachOverThreeHostClusters) {
  const Geometry geometry = geometry_with(9);
  const uint32_t x = 61;
  const L2Entry two(kCompressed | uint64_t{1} << x | (5 * 512 + 500));
  EXPECT_EQ(two.references(geometry), (HostClusters{5, 2}));
  // With 64 KiB clusters: 256 sectors from near a cluster's end.
  const Geometry big = geometry_with(16);
  const L2Entry three(kCompressed | uint64_t{255} << 54 | (2 * 65536 - 512));
  EXPECT_EQ(three.references(big), (HostClusters{1, 3}));
}

TEST(TableEntry, WhatIsMadeOfCompressedBytesCoversThem) {
  for (uint32_t bits : {9u, 12u, 16u, 21u}) {
    const Geometry geometry = geometry_with(bits);
    for (uint64_t bytes :
         {uint64_t{1}, uint64_t{511}, uint64_t{1} << (bits - 1),
          (uint64_t{1} << bits) - 1}) {
      for (uint64_t offset : {uint64_t{0x200000}, uint64_t{0x200000} + 1,
                              uint64_t{0x200000} + 511,
                              (uint64_t{1} << (62 - (bits - 8))) - 4096}) {
        const L2Entry entry =
            L2Entry::compressed_at(HostOffset{offset}, bytes, geometry);
        ASSERT_EQ(entry.kind(), ClusterKind::kCompressed);
        ASSERT_FALSE(entry.copied());
        const CompressedExtent extent = entry.compressed(geometry);
        ASSERT_EQ(extent.host.bytes, offset) << bits;
        ASSERT_GE(extent.bytes, bytes);
        ASSERT_LT(extent.bytes, bytes + 512);
        const HostClusters used = entry.references(geometry);
        ASSERT_EQ(used.end(), ((offset + bytes - 1) >> bits) + 1);
      }
    }
    const uint64_t limit = uint64_t{1} << (62 - (bits - 8));
    EXPECT_TRUE(L2Entry::can_name_compressed(HostOffset{limit - 1}, geometry));
    EXPECT_FALSE(L2Entry::can_name_compressed(HostOffset{limit}, geometry));
  }
}

TEST(TableEntry, StandardEntriesReferToTheirClusterOnly) {
  const Geometry geometry = geometry_with(16);
  EXPECT_EQ(L2Entry(kCopied | 0x50000).references(geometry),
            (HostClusters{5, 1}));
  EXPECT_EQ(L2Entry(0x50001).references(geometry), (HostClusters{5, 1}));
  EXPECT_EQ(L2Entry(1).references(geometry).count, 0u);
  EXPECT_EQ(L2Entry(0).references(geometry).count, 0u);
}

}  // namespace
}  // namespace spindle::qcow2

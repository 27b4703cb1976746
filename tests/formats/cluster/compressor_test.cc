#include "formats/cluster/compressor.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "formats/cluster/inflate.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes noise(size_t bytes, std::mt19937_64* random) {
  Bytes result(bytes);
  for (uint8_t& byte : result) byte = static_cast<uint8_t>((*random)());
  return result;
}

Bytes compressed(CompressionType type, const Bytes& cluster, size_t limit) {
  Bytes out(limit + 1, 0xee);
  const absl::StatusOr<size_t> bytes =
      compress_cluster(type, cluster, absl::MakeSpan(out).first(limit));
  EXPECT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(out[limit], 0xee) << "written beyond the limit";
  out.resize(bytes.value_or(0));
  return out;
}

class Compressor : public ::testing::TestWithParam<CompressionType> {};
INSTANTIATE_TEST_SUITE_P(Types, Compressor,
                         ::testing::Values(CompressionType::kZlib,
                                           CompressionType::kZstd),
                         [](const auto& info) {
                           return info.param == CompressionType::kZstd ? "Zstd"
                                                                       : "Zlib";
                         });

TEST_P(Compressor, WhatItMakesInflatesToTheCluster) {
  std::mt19937_64 random(testing::test_seed());
  for (size_t cluster_bytes : {512, 4096, 65536, 2 << 20}) {
    // More and more noise at the beginning; the rest repeats it.
    for (size_t noise_bytes : {size_t{0}, size_t{16}, cluster_bytes / 4,
                               cluster_bytes - cluster_bytes / 4}) {
      Bytes cluster = noise(noise_bytes, &random);
      cluster.resize(cluster_bytes, 'r');
      const Bytes out = compressed(GetParam(), cluster, cluster_bytes - 1);
      ASSERT_FALSE(out.empty());
      Bytes again(cluster_bytes, 0xdd);
      ASSERT_EQ(inflate_cluster(GetParam(), out, absl::MakeSpan(again)),
                absl::OkStatus());
      ASSERT_TRUE(again == cluster) << cluster_bytes << " " << noise_bytes;
    }
  }
}

TEST_P(Compressor, SaysWhenTheDataDoNotBecomeShorter) {
  std::mt19937_64 random(testing::test_seed());
  for (size_t cluster_bytes : {512, 65536}) {
    const Bytes cluster = noise(cluster_bytes, &random);
    EXPECT_TRUE(compressed(GetParam(), cluster, cluster_bytes - 1).empty());
  }
}

// Give or take a byte: deflate wants to see that there is room left.
TEST_P(Compressor, TakesNoMoreRoomThanItNeeds) {
  std::mt19937_64 random(testing::test_seed());
  for (size_t cluster_bytes : {512, 65536}) {
    Bytes cluster = noise(cluster_bytes / 2, &random);
    cluster.resize(cluster_bytes);
    const Bytes out = compressed(GetParam(), cluster, cluster_bytes - 1);
    ASSERT_FALSE(out.empty());
    EXPECT_EQ(compressed(GetParam(), cluster, out.size() + 1), out);
    EXPECT_TRUE(compressed(GetParam(), cluster, out.size() - 1).empty());
    EXPECT_TRUE(compressed(GetParam(), cluster, 1).empty());
    EXPECT_TRUE(compressed(GetParam(), cluster, 0).empty());
  }
}

// What repeats farther back than that would need a larger window.
TEST(CompressorZlib, ReadersWithAWindowOf4KibSuffice) {
  std::mt19937_64 random(testing::test_seed());
  Bytes cluster;
  const Bytes piece = noise(6000, &random);
  while (cluster.size() < 65536)
    cluster.insert(cluster.end(), piece.begin(), piece.end());
  cluster.resize(65536);
  std::fill(cluster.begin() + 40000, cluster.end(), 0);
  const Bytes out = compressed(CompressionType::kZlib, cluster, 65535);
  ASSERT_FALSE(out.empty());

  z_stream stream = {};
  ASSERT_EQ(inflateInit2(&stream, -12), Z_OK);
  Bytes again(cluster.size());
  stream.next_in = const_cast<Bytef*>(out.data());
  stream.avail_in = static_cast<uInt>(out.size());
  stream.next_out = again.data();
  stream.avail_out = static_cast<uInt>(again.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  inflateEnd(&stream);
  EXPECT_TRUE(again == cluster);
}

}  // namespace
}  // namespace spindle

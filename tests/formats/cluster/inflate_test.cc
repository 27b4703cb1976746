#include "formats/cluster/inflate.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <cstdint>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "tests/support/seed.h"

namespace spindle {
namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kClusterBytes = 4096;

// `flush`: Z_FINISH ends the stream, Z_SYNC_FLUSH leaves it open.
Bytes deflate_bytes(const Bytes& plain, int flush = Z_FINISH) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -12, 9,
                         Z_DEFAULT_STRATEGY),
            Z_OK);
  Bytes out(plain.size() * 2 + 1024);
  stream.next_in = const_cast<Bytef*>(plain.data());
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, flush), flush == Z_FINISH ? Z_STREAM_END : Z_OK);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

Bytes pattern(size_t bytes) {
  Bytes plain(bytes);
  for (size_t i = 0; i < bytes; ++i)
    plain[i] = static_cast<uint8_t>(i * i / 77 + i % 13);
  return plain;
}

absl::Status inflate_into(const Bytes& compressed, Bytes* cluster) {
  cluster->assign(kClusterBytes, 0xee);
  return inflate_cluster(CompressionType::kZlib, compressed,
                         absl::MakeSpan(*cluster));
}

TEST(InflateCluster, InflatesExactlyACluster) {
  const Bytes plain = pattern(kClusterBytes);
  Bytes cluster;
  ASSERT_TRUE(inflate_into(deflate_bytes(plain), &cluster).ok());
  EXPECT_EQ(cluster, plain);
}

TEST(InflateCluster, IgnoresWhatFollowsTheEndOfTheStream) {
  const Bytes plain = pattern(kClusterBytes);
  Bytes compressed = deflate_bytes(plain);
  compressed.insert(compressed.end(), 511, 0xff);
  Bytes cluster;
  ASSERT_TRUE(inflate_into(compressed, &cluster).ok());
  EXPECT_EQ(cluster, plain);
}

TEST(InflateCluster, TakesAFullClusterWhoseLastBlockIsNotMarked) {
  const Bytes plain = pattern(kClusterBytes);
  Bytes cluster;
  ASSERT_TRUE(inflate_into(deflate_bytes(plain, Z_SYNC_FLUSH), &cluster).ok());
  EXPECT_EQ(cluster, plain);
}

TEST(InflateCluster, RefusesAStreamThatEndsEarly) {
  Bytes cluster;
  EXPECT_TRUE(absl::IsDataLoss(
      inflate_into(deflate_bytes(pattern(kClusterBytes - 1)), &cluster)));
  EXPECT_TRUE(absl::IsDataLoss(inflate_into(deflate_bytes({}), &cluster)));
}

TEST(InflateCluster, RefusesAStreamThatIsLongerThanACluster) {
  Bytes cluster;
  EXPECT_TRUE(absl::IsDataLoss(
      inflate_into(deflate_bytes(pattern(kClusterBytes + 1)), &cluster)));
  // Small input, huge output: no more than a cluster is ever made of it.
  EXPECT_TRUE(absl::IsDataLoss(
      inflate_into(deflate_bytes(Bytes(size_t{16} << 20)), &cluster)));
}

TEST(InflateCluster, RefusesEveryTruncation) {
  const Bytes compressed = deflate_bytes(pattern(kClusterBytes));
  Bytes cluster;
  // The last bytes hold only the end mark; a full cluster needs no more.
  for (size_t length = 0; length + 8 < compressed.size(); ++length) {
    const Bytes cut(compressed.begin(),
                    compressed.begin() + static_cast<ptrdiff_t>(length));
    ASSERT_FALSE(inflate_into(cut, &cluster).ok()) << length;
  }
}

TEST(InflateCluster, SurvivesDamage) {
  std::mt19937_64 random(testing::test_seed());
  const Bytes compressed = deflate_bytes(pattern(kClusterBytes));
  Bytes cluster;
  for (int i = 0; i < 3000; ++i) {
    Bytes damaged = compressed;
    for (int flips = 0; flips < 1 + i % 5; ++flips)
      damaged[random() % damaged.size()] ^= 1u << (random() % 8);
    const absl::Status status = inflate_into(damaged, &cluster);
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
  }
  const Bytes noise(1000, 0xff);
  EXPECT_TRUE(absl::IsDataLoss(inflate_into(noise, &cluster)));
}

// ---- zstd -------------------------------------------------------------------

Bytes zstd_frame(const Bytes& plain, bool names_size = true) {
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, names_size ? 1 : 0);
  Bytes out(ZSTD_compressBound(plain.size()));
  const size_t bytes = ZSTD_compress2(context, out.data(), out.size(),
                                      plain.data(), plain.size());
  EXPECT_FALSE(ZSTD_isError(bytes));
  ZSTD_freeCCtx(context);
  out.resize(bytes);
  return out;
}

absl::Status inflate_zstd_into(const Bytes& compressed, Bytes* cluster) {
  cluster->assign(kClusterBytes, 0xee);
  return inflate_cluster(CompressionType::kZstd, compressed,
                         absl::MakeSpan(*cluster));
}

TEST(InflateZstd, InflatesExactlyAClusterAndIgnoresWhatFollows) {
  const Bytes plain = pattern(kClusterBytes);
  Bytes compressed = zstd_frame(plain);
  Bytes cluster;
  ASSERT_TRUE(inflate_zstd_into(compressed, &cluster).ok());
  EXPECT_EQ(cluster, plain);
  compressed.insert(compressed.end(), 511, 0xff);
  ASSERT_TRUE(inflate_zstd_into(compressed, &cluster).ok());
  EXPECT_EQ(cluster, plain);
}

// A window of 2 GiB: what it says is not what is allocated.
TEST(InflateZstd, TakesAFrameWithoutItsSizeAndWithAHugeWindow) {
  const Bytes plain = pattern(kClusterBytes);
  Bytes compressed = zstd_frame(plain, /*names_size=*/false);
  constexpr size_t kFrameHeaderDescriptor = 4;
  constexpr size_t kWindowDescriptor = 5;
  ASSERT_EQ(compressed[kFrameHeaderDescriptor] & 0xe0, 0);
  compressed[kWindowDescriptor] = (31 - 10) << 3;
  Bytes cluster;
  const absl::Status status = inflate_zstd_into(compressed, &cluster);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(cluster, plain);
}

TEST(InflateZstd, TakesSeveralFrames) {
  const Bytes plain = pattern(kClusterBytes);
  const auto half = plain.begin() + kClusterBytes / 2;
  Bytes compressed = zstd_frame(Bytes(plain.begin(), half));
  const Bytes rest = zstd_frame(Bytes(half, plain.end()));
  compressed.insert(compressed.end(), rest.begin(), rest.end());
  Bytes cluster;
  ASSERT_TRUE(inflate_zstd_into(compressed, &cluster).ok());
  EXPECT_EQ(cluster, plain);
}

TEST(InflateZstd, RefusesWhatDoesNotEndWithTheCluster) {
  Bytes cluster;
  for (size_t bytes :
       {size_t{0}, kClusterBytes - 1, kClusterBytes + 1, size_t{16} << 20}) {
    EXPECT_TRUE(absl::IsDataLoss(
        inflate_zstd_into(zstd_frame(pattern(bytes)), &cluster)))
        << bytes;
  }
  EXPECT_TRUE(absl::IsDataLoss(inflate_zstd_into({}, &cluster)));
  EXPECT_TRUE(absl::IsDataLoss(inflate_zstd_into(Bytes(512), &cluster)));
  // The other type's.
  EXPECT_TRUE(absl::IsDataLoss(
      inflate_zstd_into(deflate_bytes(pattern(kClusterBytes)), &cluster)));
}

TEST(InflateZstd, RefusesEveryTruncationAndSurvivesDamage) {
  const Bytes compressed = zstd_frame(pattern(kClusterBytes));
  Bytes cluster;
  for (size_t length = 0; length < compressed.size(); ++length) {
    const Bytes cut(compressed.begin(),
                    compressed.begin() + static_cast<ptrdiff_t>(length));
    ASSERT_TRUE(absl::IsDataLoss(inflate_zstd_into(cut, &cluster))) << length;
  }
  std::mt19937_64 random(testing::test_seed());
  for (int i = 0; i < 3000; ++i) {
    Bytes damaged = compressed;
    for (int flips = 0; flips < 1 + i % 5; ++flips)
      damaged[random() % damaged.size()] ^= 1u << (random() % 8);
    const absl::Status status = inflate_zstd_into(damaged, &cluster);
    EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
  }
}

}  // namespace
}  // namespace spindle

// Compressed clusters of a qcow: read, written, overwritten.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/io_vector.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_format.h"
#include "formats/qcow/table_entry.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(const QcowShape& shape) {
  MemoryImageOptions options;
  options.format = qcow::qcow_format();
  options.size_bytes = shape.size_bytes;
  options.bytes = new_qcow(shape);
  return options;
}

absl::Status write_compressed(BlockDriver& driver, uint64_t offset,
                              std::string data) {
  return driver.write_compressed(IoVector(data.data(), data.size()),
                                 Sector::from_byte_offset(offset));
}

std::string noise(size_t bytes, std::mt19937_64* random) {
  std::string data(bytes, '\0');
  for (char& byte : data) byte = static_cast<char>((*random)());
  return data;
}

qcow::Geometry geometry_of(uint32_t cluster_bits) {
  qcow::Geometry geometry;
  geometry.cluster_bits = cluster_bits;
  return geometry;
}

TEST(QcowCompressed, IsPackedBehindEachOtherAndRead) {
  for (const uint32_t cluster_bits : {9u, 12u, 16u}) {
    const uint64_t cluster = uint64_t{1} << cluster_bits;
    MemoryImage image(options_of({.cluster_bits = cluster_bits}));
    ASSERT_EQ(write_compressed(image.driver(), 0, std::string(cluster, 'a')),
              absl::OkStatus());
    ASSERT_EQ(write_compressed(image.driver(), 2 * cluster,
                               std::string(3 * cluster, 'b')),
              absl::OkStatus());
    ASSERT_EQ(image.write({8 * cluster, cluster}, 'c'), absl::OkStatus());
    const auto check = [&] {
      EXPECT_TRUE(image.reads_as({0, cluster}, 'a'));
      EXPECT_TRUE(image.reads_as({cluster, cluster}, 0));
      EXPECT_TRUE(image.reads_as({2 * cluster, 3 * cluster}, 'b'));
      EXPECT_TRUE(image.reads_as({8 * cluster, cluster}, 'c'));
    };
    check();
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
    const std::string file = image.memory().content();
    const uint64_t table = first_table_offset({.cluster_bits = cluster_bits});
    const auto place = [&](uint64_t index) {
      return qcow::L2Entry(get64(file, table + 8 * index))
          .place(geometry_of(cluster_bits));
    };
    // One behind the table, the others on the sectors that follow.
    EXPECT_EQ(place(0).offset, table + kCluster);
    EXPECT_EQ(place(2).offset,
              place(0).offset + (place(0).length + 511) / 512 * 512);
    EXPECT_EQ(place(3).offset,
              place(2).offset + (place(2).length + 511) / 512 * 512);
    EXPECT_EQ(file.substr(place(0).offset, place(0).length),
              deflated(std::string(cluster, 'a')));
    ASSERT_EQ(image.open(), absl::OkStatus());
    check();
  }
}

TEST(QcowCompressed, WhatDoesNotBecomeShorterIsStoredAsItIs) {
  std::mt19937_64 random(test_seed());
  MemoryImage image(options_of({}));
  const std::string data = noise(2 * kCluster, &random);
  ASSERT_EQ(write_compressed(image.driver(), kCluster, data), absl::OkStatus());
  EXPECT_EQ(*read_bytes(image.driver(), {kCluster, 2 * kCluster}), data);
  EXPECT_TRUE(image.host_of(kCluster).has_value());
}

TEST(QcowCompressed, TheLastClusterMayBeShort) {
  MemoryImage image(options_of({.size_bytes = 3 * kCluster + 1024}));
  ASSERT_EQ(
      write_compressed(image.driver(), 3 * kCluster, std::string(1024, 'z')),
      absl::OkStatus());
  EXPECT_TRUE(image.reads_as({3 * kCluster, 1024}, 'z'));
  EXPECT_EQ(image.host_of(3 * kCluster), std::nullopt);
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(QcowCompressed, APartialWriteGetsThePlainClusterAroundIt) {
  MemoryImage image(options_of({}));
  ASSERT_EQ(write_compressed(image.driver(), 0, std::string(2 * kCluster, 'a')),
            absl::OkStatus());
  ASSERT_EQ(image.write({512, 512}, 'x'), absl::OkStatus());
  ASSERT_EQ(image.write({kCluster, kCluster}, 'y'), absl::OkStatus());
  const auto check = [&] {
    EXPECT_TRUE(image.reads_as({0, 512}, 'a'));
    EXPECT_TRUE(image.reads_as({512, 512}, 'x'));
    EXPECT_TRUE(image.reads_as({1024, kCluster - 1024}, 'a'));
    EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 'y'));
  };
  check();
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  check();
}

// QEMU loses such writes.  Each time the file would grow, for the old place
// cannot be given back: so a cluster is compressed once.
TEST(QcowCompressed, WrittenAgainItIsNoLongerCompressed) {
  MemoryImage image(options_of({}));
  for (const char value : {'a', 'b', 'c', 'd'}) {
    ASSERT_EQ(
        write_compressed(image.driver(), 0, std::string(2 * kCluster, value)),
        absl::OkStatus());
    EXPECT_TRUE(image.reads_as({0, 2 * kCluster}, static_cast<uint8_t>(value)));
    EXPECT_EQ(image.host_of(0).has_value(), value != 'a');
  }
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  // Header, table, two compressed clusters, two clusters.
  EXPECT_EQ(image.memory().length_bytes(), 5 * kCluster);
}

TEST(QcowCompressed, ManyWritersAtATime) {
  std::mt19937_64 random(test_seed());
  constexpr uint64_t kClusters = 400;
  MemoryImage image(options_of({.size_bytes = 1000 * kCluster}));
  std::vector<std::string> contents(kClusters);
  for (uint64_t i = 0; i < kClusters; ++i) {
    contents[i] = noise(random() % kCluster, &random);
    contents[i].resize(kCluster, static_cast<char>(i));
  }
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = t; i < kClusters; i += 4) {
        EXPECT_EQ(write_compressed(image.driver(), i * kCluster, contents[i]),
                  absl::OkStatus());
        if (i % 50 == t) {
          EXPECT_EQ(image.flush(), absl::OkStatus());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
  for (uint64_t i = 0; i < kClusters; ++i) {
    const auto content = read_bytes(image.driver(), {i * kCluster, kCluster});
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_TRUE(*content == contents[i]) << i;
  }
}

// ---- Streams that others wrote, or damaged ----------------------------------

struct Stream {
  std::string name;
  uint64_t offset;
  uint64_t bytes;
  bool is_readable;
};

TEST(QcowCompressed, MustEndInTheFileAndFillACluster) {
  const std::string stream = deflated(std::string(kCluster, 'q'));
  const std::string shorter = deflated(std::string(kCluster - 1, 'q'));
  const std::string longer = deflated(std::string(kCluster + 1, 'q'));
  std::string file = qcow_with_entries({}, {});
  const uint64_t base = file.size();
  // Packed by the byte, as older writers did.
  put_bytes(&file, base, stream + stream);
  put_bytes(&file, base + 1024, shorter);
  put_bytes(&file, base + 2048, longer);
  put_bytes(&file, base + 2 * kCluster - stream.size(), stream);
  const std::vector<Stream> streams = {
      {"as it is", base, stream.size(), true},
      {"by the byte", base + stream.size(), stream.size(), true},
      {"with more behind it", base, stream.size() + 40, true},
      {"at the end of the file", base + 2 * kCluster - stream.size(),
       stream.size(), true},
      {"cut", base, stream.size() - 3, false},
      {"empty", base, 0, false},
      {"not a stream", base + 512, 100, false},
      {"too short", base + 1024, shorter.size(), false},
      {"too long", base + 2048, longer.size(), false},
      {"beyond the end", base + 2 * kCluster - 5, stream.size(), false},
      {"far away", (uint64_t{1} << 51) - 512, 512, false},
  };
  const qcow::Geometry geometry = geometry_of(12);
  for (size_t i = 0; i < streams.size(); ++i) {
    put64(&file, first_table_offset({}) + 8 * i,
          qcow::L2Entry::compressed_at({streams[i].offset}, streams[i].bytes,
                                       geometry)
              .raw());
  }
  MemoryImageOptions options = options_of({});
  options.bytes = file;
  MemoryImage image(options);
  for (size_t i = 0; i < streams.size(); ++i) {
    const ByteRange cluster{i * kCluster, kCluster};
    if (streams[i].is_readable) {
      EXPECT_TRUE(image.reads_as(cluster, 'q')) << streams[i].name;
      continue;
    }
    EXPECT_TRUE(absl::IsDataLoss(read_bytes(image.driver(), cluster).status()))
        << streams[i].name;
  }
}

// One that cannot be read is lost; the rest of the image is not.
TEST(QcowCompressed, ADamagedStreamStopsNobodyElse) {
  std::string file = qcow_with_entries(
      {}, {qcow::L2Entry::compressed_at({8192}, 100, geometry_of(12)).raw()});
  put_bytes(&file, 8192, std::string(512, '\xff'));
  MemoryImageOptions options = options_of({});
  options.bytes = file;
  MemoryImage image(options);
  EXPECT_FALSE(read_bytes(image.driver(), {0, 512}).ok());
  EXPECT_EQ(image.write({kCluster, 512}, 1), absl::OkStatus());
  // In part: what is around it cannot be read.
  EXPECT_TRUE(absl::IsDataLoss(image.write({0, 512}, 1)));
  // As a whole it can be replaced.
  EXPECT_EQ(image.write({0, kCluster}, 2), absl::OkStatus());
  EXPECT_TRUE(image.reads_as({0, kCluster}, 2));
}

}  // namespace
}  // namespace spindle::testing

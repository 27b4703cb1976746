// Compressed writes, as the driver does them: where the data go, what they
// share, and what becomes of them.
#include "formats/qcow2/compressed_writer.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <future>
#include <memory>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow2/memory_image.h"
#include "tests/formats/qcow2/open_image.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

absl::Status write_compressed(BlockDriver& driver, uint64_t offset,
                              std::string bytes) {
  return driver.write_compressed(IoVector(bytes.data(), bytes.size()),
                                 Sector::from_byte_offset(offset));
}

absl::Status write_plain(BlockDriver& driver, uint64_t offset,
                         std::string bytes) {
  return driver.write(IoVector(bytes.data(), bytes.size()),
                      Sector::from_byte_offset(offset));
}

// `noise_bytes` that do not compress, and the rest, which does.
std::string some_bytes(std::mt19937_64& random, uint64_t bytes,
                       uint64_t noise_bytes) {
  std::string result(bytes, static_cast<char>(random()));
  for (uint64_t i = 0; i < noise_bytes; ++i)
    result[i] = static_cast<char>(random());
  return result;
}

// The L2 entry of a guest cluster, in an image with one L1 entry or more.
uint64_t l2_entry(const std::string& bytes, uint64_t cluster_bytes,
                  uint64_t guest) {
  constexpr uint64_t kOffsets = 0x00fffffffffffe00;
  const uint64_t entries = cluster_bytes / 8;
  const uint64_t index = guest / cluster_bytes;
  const uint64_t l1 = get_big64(bytes, 40);
  const uint64_t l2 = get_big64(bytes, l1 + index / entries * 8) & kOffsets;
  return l2 == 0 ? 0 : get_big64(bytes, l2 + index % entries * 8);
}
bool is_compressed(uint64_t entry) { return (entry >> 62 & 1) != 0; }

// ---- Like QEMU --------------------------------------------------------------

struct Shape {
  const char* name;
  uint64_t cluster_bytes;
  const char* options;  // beside cluster_size
  uint64_t size_bytes;
};
void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }

class SamePlacement : public ::testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(
    Shapes, SamePlacement,
    ::testing::Values(
        Shape{"Zlib64k", 65536, "", 8 << 20},
        Shape{"Zstd64k", 65536, ",compression_type=zstd", 8 << 20},
        Shape{"Zlib4k", 4096, "", 1 << 20},
        // Many refcount blocks and L2 tables.
        Shape{"Zlib512", 512, "", 512 << 10},
        Shape{"Zstd512Wide", 512, ",compression_type=zstd,refcount_bits=64",
              256 << 10},
        // Sharing ends early, or never begins.
        Shape{"Refcount1", 4096, ",refcount_bits=1", 512 << 10},
        Shape{"Refcount2", 4096, ",refcount_bits=2", 512 << 10},
        Shape{"Version2", 65536, ",compat=0.10", 4 << 20},
        Shape{"PartialEnd", 65536, "", (1 << 20) + 1536}),
    [](const auto& info) { return info.param.name; });

struct OneWrite {
  uint64_t offset;
  std::string bytes;
  bool compressed;
};

// The same writes, one at a time: the same bytes.
void expect_same_file(const Shape& shape, const std::vector<OneWrite>& writes) {
  const std::string options =
      absl::StrCat("cluster_size=", shape.cluster_bytes, shape.options);
  MemoryImageOptions memory;
  memory.size_bytes = shape.size_bytes;
  memory.bytes = qemu_image_bytes(shape.size_bytes, options);
  memory.open["reuse"] = "lowest";
  MemoryImage image(memory);
  ASSERT_TRUE(image.driver().capabilities().has(Capability::kWriteCompressed));
  std::vector<std::string> commands;
  std::vector<std::string> sources;
  for (const OneWrite& write : writes) {
    sources.push_back(temporary_path("source"));
    ASSERT_TRUE(write_file(sources.back(), {reinterpret_cast<const uint8_t*>(
                                                write.bytes.data()),
                                            write.bytes.size()})
                    .ok());
    commands.push_back(absl::StrCat("write ", write.compressed ? "-c " : "",
                                    "-s ", sources.back(), " ", write.offset,
                                    " ", write.bytes.size()));
    ASSERT_EQ(write.compressed
                  ? write_compressed(image.driver(), write.offset, write.bytes)
                  : write_plain(image.driver(), write.offset, write.bytes),
              absl::OkStatus());
  }
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  const std::string ours = image.memory().content();
  const std::string theirs =
      qemu_image_bytes(shape.size_bytes, options, commands);
  for (const std::string& source : sources) ::unlink(source.c_str());
  EXPECT_EQ(ours.size(), theirs.size());
  for (const OneWrite& write : writes) {
    ASSERT_EQ(l2_entry(ours, shape.cluster_bytes, write.offset),
              l2_entry(theirs, shape.cluster_bytes, write.offset))
        << "at guest offset " << write.offset;
  }
  EXPECT_TRUE(ours == theirs);
}

// Each cluster once, in random order, some of them not compressed, some not
// compressible.
TEST_P(SamePlacement, TheFileIsQemus) {
  const Shape& shape = GetParam();
  std::mt19937_64 random(test_seed());
  std::vector<uint64_t> clusters;
  for (uint64_t at = 0; at < shape.size_bytes; at += shape.cluster_bytes)
    clusters.push_back(at);
  std::shuffle(clusters.begin(), clusters.end(), random);
  clusters.resize(std::min<size_t>(clusters.size(), 300));
  std::vector<OneWrite> writes;
  for (const uint64_t at : clusters) {
    const uint64_t length =
        std::min(shape.cluster_bytes, shape.size_bytes - at);
    const uint64_t noise[] = {0, length / 16, length / 2, length};
    writes.push_back({at, some_bytes(random, length, noise[random() % 4]),
                      random() % 8 != 0});
  }
  expect_same_file(shape, writes);
}

// Data that would go on in the first cluster of a refcount block that is not
// there yet, again and again, at each distance.
TEST(SamePlacementAtRefcountBlocks, TheFileIsQemus) {
  const Shape shape{"Blocks", 512, ",refcount_bits=64", 192 << 10};
  std::mt19937_64 random(test_seed());
  for (uint64_t noise_bytes = 150; noise_bytes < 450; noise_bytes += 50) {
    SCOPED_TRACE(noise_bytes);
    std::vector<OneWrite> writes;
    for (uint64_t at = 0; at < shape.size_bytes; at += 512)
      writes.push_back({at, some_bytes(random, 512, noise_bytes), true});
    expect_same_file(shape, writes);
  }
}

TEST(CompressedWriter, SeveralClustersInOneRequestArePackedInOrder) {
  constexpr uint64_t kCluster = 65536;
  std::mt19937_64 random(test_seed());
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += some_bytes(random, kCluster, 9000);
  MemoryImageOptions options;
  options.size_bytes = bytes.size() - 512;
  bytes.resize(options.size_bytes);
  MemoryImage image(options);
  ASSERT_EQ(write_compressed(image.driver(), 0, bytes), absl::OkStatus());
  const auto content = read_bytes(image.driver(), {0, bytes.size()});
  ASSERT_TRUE(content.ok());
  EXPECT_TRUE(*content == bytes);
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  const std::string file = image.memory().content();
  uint64_t end = 0;
  for (uint64_t at = 0; at < bytes.size(); at += kCluster) {
    const uint64_t entry = l2_entry(file, kCluster, at);
    ASSERT_TRUE(is_compressed(entry));
    const uint64_t host = entry & ((uint64_t{1} << 54) - 1);
    if (end != 0) {
      EXPECT_GE(host, end);
      EXPECT_LT(host, end + 512);
    }
    // The sectors that follow the first.
    end = (host / 512 + (entry >> 54 & 0xff)) * 512;
  }
  // What the format can do, it can do read-only as well: filters ask.
  ASSERT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
  EXPECT_TRUE(image.driver().capabilities().has(Capability::kWriteCompressed));
  const auto again = read_bytes(image.driver(), {0, bytes.size()});
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(*again == bytes);
}

// ---- What shares a host cluster ---------------------------------------------

constexpr uint64_t kCluster = 4096;

MemoryImageOptions options_of(const std::string& type = "zlib",
                              const std::string& refcount_bits = "16") {
  MemoryImageOptions options;
  options.size_bytes = 256 * kCluster;
  options.create = {{"cluster_size", "4096"},
                    {"compression_type", type},
                    {"refcount_bits", refcount_bits}};
  return options;
}

ByteRange cluster(uint64_t index) { return {index * kCluster, kCluster}; }

std::string filled(uint8_t value) {
  return std::string(kCluster, static_cast<char>(value));
}

absl::Status compress_fill(MemoryImage& image, uint64_t index, uint8_t value) {
  return write_compressed(image.driver(), index * kCluster, filled(value));
}

// Every way to overwrite compressed data: nothing else changes, and at the end
// nothing is left behind.
TEST(CompressedWriter, WhatIsOverwrittenIsGivenBack) {
  for (const char* type : {"zlib", "zstd"}) {
    MemoryImageOptions options = options_of(type);
    options.open["reuse"] = "lowest";
    MemoryImage image(options);
    for (uint64_t i = 0; i < 40; ++i)
      ASSERT_EQ(compress_fill(image, i, 1 + i), absl::OkStatus());
    for (uint64_t i = 0; i < 40; ++i) {
      BlockDriver& driver = image.driver();
      const ByteRange part{i * kCluster + 512, 1024};
      switch (i % 5) {
        case 0:
          ASSERT_EQ(image.write(part, 200), absl::OkStatus());
          ASSERT_TRUE(image.reads_as(part, 200));
          ASSERT_TRUE(image.reads_as({i * kCluster, 512}, 1 + i));
          ASSERT_TRUE(
              image.reads_as({part.end(), kCluster - 512 - 1024}, 1 + i));
          break;
        case 1:
          ASSERT_EQ(image.write(cluster(i), 201), absl::OkStatus());
          ASSERT_TRUE(image.reads_as(cluster(i), 201));
          break;
        case 2:
          ASSERT_EQ(image.discard(cluster(i)), absl::OkStatus());
          ASSERT_TRUE(image.reads_as(cluster(i), 0));
          break;
        case 3:
          ASSERT_EQ(driver.write_zeroes(cluster(i), {}), absl::OkStatus());
          ASSERT_TRUE(image.reads_as(cluster(i), 0));
          break;
        case 4:
          ASSERT_EQ(compress_fill(image, i, 100 + i), absl::OkStatus());
          ASSERT_TRUE(image.reads_as(cluster(i), 100 + i));
          break;
      }
      if (i + 1 < 40) {
        ASSERT_TRUE(image.reads_as(cluster(i + 1), 2 + i));
      }
      if (i % 7 == 0) {
        ASSERT_EQ(image.flush(), absl::OkStatus());
      }
    }
    // And compressed data over everything else.
    for (uint64_t i = 0; i < 40; ++i)
      ASSERT_EQ(compress_fill(image, i, 50 + i), absl::OkStatus());
    for (uint64_t i = 0; i < 40; ++i)
      ASSERT_TRUE(image.reads_as(cluster(i), 50 + i));
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
    ASSERT_EQ(image.open(), absl::OkStatus());
    for (uint64_t i = 0; i < 40; ++i)
      ASSERT_TRUE(image.reads_as(cluster(i), 50 + i));
    ASSERT_EQ(image.discard({0, 40 * kCluster}), absl::OkStatus());
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

TEST(CompressedWriter, DataThatDoNotBecomeShorterAreStoredAsTheyAre) {
  std::mt19937_64 random(test_seed());
  for (const char* type : {"zlib", "zstd"}) {
    MemoryImage image(options_of(type));
    const std::string noise = some_bytes(random, kCluster, kCluster);
    ASSERT_EQ(write_compressed(image.driver(), kCluster, noise),
              absl::OkStatus());
    ASSERT_TRUE(image.host_of(kCluster).has_value());
    EXPECT_EQ(*read_bytes(image.driver(), cluster(1)), noise);
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// The host cluster that is packed into is freed: it is somebody else's then.
TEST(CompressedWriter, AFreedClusterIsNotPackedIntoAnyMore) {
  MemoryImageOptions options = options_of();
  options.open["reuse"] = "lowest";
  MemoryImage image(options);
  ASSERT_EQ(compress_fill(image, 0, 1), absl::OkStatus());
  ASSERT_EQ(image.discard(cluster(0)), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  ASSERT_EQ(image.write(cluster(1), 2), absl::OkStatus());
  ASSERT_EQ(compress_fill(image, 2, 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_TRUE(image.reads_as(cluster(2), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A hole is being punched into the cluster that was packed into last.
TEST(CompressedWriter, NothingArrivesWhereAHoleIsPunched) {
  MemoryImage image(options_of());
  ASSERT_EQ(compress_fill(image, 0, 1), absl::OkStatus());
  ASSERT_EQ(image.discard(cluster(0)), absl::OkStatus());
  auto stop = image.file().stop_at({.purpose = Purpose::kClusterFree});
  auto flushed = std::async(std::launch::async, [&] { return image.flush(); });
  stop->wait_until_reached();
  ASSERT_EQ(compress_fill(image, 1, 2), absl::OkStatus());
  stop->resume();
  ASSERT_EQ(flushed.get(), absl::OkStatus());
  ASSERT_EQ(compress_fill(image, 2, 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
  EXPECT_TRUE(image.reads_as(cluster(2), 3));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(1), 2));
}

// What was packed last fails, when nothing else is left of its cluster: the
// next data have the descriptor of the first, whose inflated copy was read.
TEST(CompressedWriter, AFailedWriteLeavesNoStaleCopy) {
  MemoryImageOptions options = options_of();
  options.open["reuse"] = "lowest";
  MemoryImage image(options);
  ASSERT_EQ(compress_fill(image, 0, 1), absl::OkStatus());
  ASSERT_TRUE(image.reads_as(cluster(0), 1));
  auto stop = image.file().stop_at({.purpose = Purpose::kWriteCompressed});
  image.file().fail_at({.purpose = Purpose::kWriteCompressed}, EIO);
  auto failed = std::async(std::launch::async,
                           [&] { return compress_fill(image, 1, 2); });
  stop->wait_until_reached();
  ASSERT_EQ(image.discard(cluster(0)), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  stop->resume();
  EXPECT_EQ(errno_of(failed.get()), EIO);
  ASSERT_EQ(compress_fill(image, 2, 3), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(2), 3));
  EXPECT_TRUE(image.reads_as(cluster(1), 0));
  EXPECT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// A reader of old compressed data, and what is written over them.
TEST(CompressedWriter, AReaderKeepsWhatItFound) {
  MemoryImageOptions options = options_of();
  options.open["reuse"] = "lowest";
  MemoryImage image(options);
  ASSERT_EQ(compress_fill(image, 0, 1), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  auto stop = image.file().stop_at({.purpose = Purpose::kReadCompressed});
  auto read = std::async(std::launch::async, [&] {
    return static_cast<bool>(image.reads_as(cluster(0), 1));
  });
  stop->wait_until_reached();
  ASSERT_EQ(compress_fill(image, 0, 2), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  for (uint64_t i = 1; i < 8; ++i)
    ASSERT_EQ(image.write(cluster(i), 9), absl::OkStatus());
  stop->resume();
  EXPECT_TRUE(read.get());
  EXPECT_TRUE(image.reads_as(cluster(0), 2));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// Where the file cannot grow, space that waits to be free is used.
TEST(CompressedWriter, AFullFileSystemIsReportedAndRecoveredFrom) {
  MemoryImageOptions options = options_of("zlib", "1");
  options.max_file_bytes = 24 * kCluster;
  MemoryImage image(options);
  absl::Status status;
  uint64_t written = 0;
  while (status.ok()) {
    status = compress_fill(image, written, 1 + written);
    if (status.ok()) ++written;
  }
  EXPECT_EQ(errno_of(status), ENOSPC) << status;
  ASSERT_GT(written, 4u);
  for (uint64_t i = 0; i < written; ++i)
    ASSERT_TRUE(image.reads_as(cluster(i), 1 + i));
  EXPECT_TRUE(image.reads_as(cluster(written), 0));
  ASSERT_EQ(image.discard(cluster(0)), absl::OkStatus());
  EXPECT_EQ(compress_fill(image, written, 77), absl::OkStatus());
  EXPECT_TRUE(image.reads_as(cluster(written), 77));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- Snapshots --------------------------------------------------------------

SnapshotInfo snapshot_one() {
  SnapshotInfo wanted;
  wanted.name = "one";
  return wanted;
}

TEST(CompressedWriter, ASnapshotKeepsWhatIsCompressedAnew) {
  for (const char* type : {"zlib", "zstd"}) {
    MemoryImage image(options_of(type));
    for (uint64_t i = 0; i < 20; ++i)
      ASSERT_EQ(compress_fill(image, i, 1 + i), absl::OkStatus());
    const auto made = image.driver().create_snapshot(snapshot_one());
    ASSERT_TRUE(made.ok()) << made.status();
    // Packed behind data that the snapshot shares.
    for (uint64_t i = 0; i < 25; i += 2)
      ASSERT_EQ(compress_fill(image, i, 100 + i), absl::OkStatus());
    ASSERT_EQ(image.discard(cluster(1)), absl::OkStatus());
    ASSERT_EQ(image.write({3 * kCluster + 512, 512}, 99), absl::OkStatus());
    for (uint64_t i = 0; i < 25; i += 2)
      ASSERT_TRUE(image.reads_as(cluster(i), 100 + i));
    ASSERT_TRUE(image.reads_as({3 * kCluster, 512}, 4));
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
    ASSERT_EQ(image.open(), absl::OkStatus());
    ASSERT_EQ(image.driver().apply_snapshot("one"), absl::OkStatus());
    for (uint64_t i = 0; i < 25; ++i)
      ASSERT_TRUE(image.reads_as(cluster(i), i < 20 ? 1 + i : 0)) << i;
    ASSERT_EQ(compress_fill(image, 5, 55), absl::OkStatus());
    ASSERT_EQ(image.driver().delete_snapshot("one"), absl::OkStatus());
    ASSERT_TRUE(image.reads_as(cluster(5), 55));
    ASSERT_TRUE(image.reads_as(cluster(6), 7));
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  }
}

// A host cluster that is packed as full as its refcount allows.
TEST(CompressedWriter, ASnapshotThatTheRefcountsCannotCountIsRefused) {
  MemoryImage image(options_of("zlib", "2"));
  for (uint64_t i = 0; i < 3; ++i)
    ASSERT_EQ(compress_fill(image, i, 1 + i), absl::OkStatus());
  EXPECT_TRUE(absl::IsResourceExhausted(
      image.driver().create_snapshot(snapshot_one()).status()));
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(image.reads_as(cluster(i), 1 + i));
    ASSERT_EQ(compress_fill(image, i, 11 + i), absl::OkStatus());
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

// ---- Threads ----------------------------------------------------------------

struct ThreadsCase {
  const char* name;
  const char* type;
  const char* refcount_bits;
  const char* reuse;
};
class Threads : public ::testing::TestWithParam<ThreadsCase> {};
INSTANTIATE_TEST_SUITE_P(
    Cases, Threads,
    ::testing::Values(ThreadsCase{"ZlibLazy", "zlib", "16", "lazy"},
                      ThreadsCase{"ZstdLowest", "zstd", "16", "lowest"},
                      ThreadsCase{"ZstdRefcount2", "zstd", "2", "lazy"},
                      ThreadsCase{"ZlibRefcount1", "zlib", "1", "lowest"}),
    [](const auto& info) { return info.param.name; });

// Writers own a cluster in eight each, of which they know the content; readers
// look at everything: a cluster is all of one value.
TEST_P(Threads, EachSeesItsOwnDataAndNobodySeesMixtures) {
  constexpr uint64_t kWriters = 8;
  constexpr uint64_t kClusters = 128;
  constexpr int kRounds = 60;
  MemoryImageOptions options =
      options_of(GetParam().type, GetParam().refcount_bits);
  options.open["reuse"] = GetParam().reuse;
  MemoryImage image(options);
  const uint64_t seed = test_seed();
  std::atomic<bool> done{false};
  std::vector<std::vector<uint8_t>> last(
      kWriters, std::vector<uint8_t>(kClusters / kWriters));

  const auto write = [&](uint64_t writer) {
    std::mt19937_64 random(seed + writer);
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t mine = random() % (kClusters / kWriters);
      const uint64_t index = mine * kWriters + writer;
      const auto value = static_cast<uint8_t>(1 + random() % 250);
      uint8_t& expected = last[writer][mine];
      switch (random() % 8) {
        default:
          ASSERT_EQ(compress_fill(image, index, value), absl::OkStatus());
          expected = value;
          break;
        case 0:
          ASSERT_EQ(image.write(cluster(index), value), absl::OkStatus());
          expected = value;
          break;
        case 1:
          ASSERT_EQ(image.discard(cluster(index)), absl::OkStatus());
          expected = 0;
          break;
        case 2:
          ASSERT_EQ(image.flush(), absl::OkStatus());
          break;
      }
      ASSERT_TRUE(image.reads_as(cluster(index), expected)) << index;
    }
  };
  const auto read = [&](uint64_t reader) {
    std::mt19937_64 random(seed + 100 + reader);
    while (!done.load()) {
      const auto bytes =
          read_bytes(image.driver(), cluster(random() % kClusters));
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      // Writes in place may be seen half way, two of them at worst.
      std::set<char> values(bytes->begin(), bytes->end());
      ASSERT_LE(values.size(), 3u);
    }
  };
  std::vector<std::thread> writers;
  std::vector<std::thread> readers;
  for (uint64_t i = 0; i < kWriters; ++i) writers.emplace_back(write, i);
  for (uint64_t i = 0; i < 2; ++i) readers.emplace_back(read, i);
  for (std::thread& thread : writers) thread.join();
  done.store(true);
  for (std::thread& thread : readers) thread.join();

  const auto check_all = [&] {
    for (uint64_t i = 0; i < kClusters; ++i)
      ASSERT_TRUE(image.reads_as(cluster(i), last[i % kWriters][i / kWriters]));
  };
  check_all();
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  check_all();
  EXPECT_EQ(image.file().lock_violation_count(), 0u);
}

// ---- What QEMU compressed, read ---------------------------------------------

TEST(CompressedReads, WhatQemuConverts) {
  std::mt19937_64 random(test_seed());
  for (const char* options :
       {"compression_type=zstd", "compression_type=zstd,cluster_size=512",
        "compression_type=zstd,cluster_size=2M", "cluster_size=4k"}) {
    std::string bytes;
    for (int i = 0; i < 24; ++i)
      bytes += some_bytes(random, 100 << 10, (random() % 100) << 10);
    const ImageFile raw{temporary_path("raw"), "raw"};
    const ImageFile packed{temporary_path("packed"), "qcow2"};
    ASSERT_TRUE(
        write_file(raw.path, {reinterpret_cast<const uint8_t*>(bytes.data()),
                              bytes.size()})
            .ok());
    ASSERT_EQ(qemu_convert(raw, packed, options, {"-c"}), absl::OkStatus());
    const auto file = read_file(packed.path);
    ASSERT_TRUE(file.ok());
    MemoryImageOptions memory;
    memory.size_bytes = bytes.size();
    memory.bytes.assign(file->begin(), file->end());
    MemoryImage image(memory);
    const auto content = read_bytes(image.driver(), {0, bytes.size()});
    ASSERT_TRUE(content.ok()) << content.status();
    EXPECT_TRUE(*content == bytes) << options;
    ::unlink(raw.path.c_str());
    ::unlink(packed.path.c_str());
  }
}

}  // namespace
}  // namespace spindle::testing

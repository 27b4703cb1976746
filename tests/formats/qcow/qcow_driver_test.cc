#include "formats/qcow/qcow_driver.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/qcow_format.h"
#include "formats/qcow/table_entry.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/formats/qcow2/memory_image.h"

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

MemoryImageOptions with_bytes(std::string bytes) {
  MemoryImageOptions options = options_of({});
  options.bytes = std::move(bytes);
  return options;
}

// Each cluster of a backing file is a letter.
std::string letters(uint64_t bytes) {
  std::string content(bytes, '\0');
  for (uint64_t i = 0; i < bytes; ++i)
    content[i] = static_cast<char>('a' + i / 512 % 26);
  return content;
}

TEST(QcowDriver, ANewImageReadsAsZeroes) {
  MemoryImage image(options_of({}));
  EXPECT_EQ(image.driver().length_bytes(), uint64_t{1} << 20);
  EXPECT_TRUE(image.reads_as({0, 1 << 20}, 0));
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_EQ(image.memory().length_bytes(), 560u);
}

class Shapes : public ::testing::TestWithParam<QcowShape> {};
INSTANTIATE_TEST_SUITE_P(
    All, Shapes,
    ::testing::Values(QcowShape{}, QcowShape{.cluster_bits = 9, .l2_bits = 12},
                      QcowShape{.cluster_bits = 9, .l2_bits = 6},
                      QcowShape{.cluster_bits = 16, .l2_bits = 6},
                      QcowShape{.cluster_bits = 16, .l2_bits = 13},
                      QcowShape{.size_bytes = (1 << 20) - 1536,
                                .cluster_bits = 14,
                                .l2_bits = 7}),
    [](const auto& info) {
      return absl::StrCat("Clusters", info.param.cluster_bits, "Tables",
                          info.param.l2_bits, "Size", info.param.size_bytes);
    });

TEST_P(Shapes, WhatIsWrittenIsReadAndKept) {
  MemoryImage image(options_of(GetParam()));
  const uint64_t end = image.driver().length_bytes();
  ASSERT_EQ(image.write({512, 512}, 1), absl::OkStatus());
  ASSERT_EQ(image.write({99 * 512, 300 * 512}, 2), absl::OkStatus());
  ASSERT_EQ(image.write({end - 512, 512}, 3), absl::OkStatus());
  ASSERT_EQ(image.write({150 * 512, 1024}, 4), absl::OkStatus());
  const auto check = [&] {
    EXPECT_TRUE(image.reads_as({0, 512}, 0));
    EXPECT_TRUE(image.reads_as({512, 512}, 1));
    EXPECT_TRUE(image.reads_as({1024, 98 * 512 - 512}, 0));
    EXPECT_TRUE(image.reads_as({99 * 512, 51 * 512}, 2));
    EXPECT_TRUE(image.reads_as({150 * 512, 1024}, 4));
    EXPECT_TRUE(image.reads_as({152 * 512, 247 * 512}, 2));
    EXPECT_TRUE(image.reads_as({399 * 512, end - 400 * 512}, 0));
    EXPECT_TRUE(image.reads_as({end - 512, 512}, 3));
  };
  check();
  ASSERT_EQ(image.flush(), absl::OkStatus());
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  check();
  ASSERT_EQ(image.write({end - 1024, 512}, 5), absl::OkStatus());
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
  EXPECT_TRUE(image.reads_as({end - 1024, 512}, 5));
  EXPECT_TRUE(image.reads_as({end - 512, 512}, 3));
}

// Whoever opens the file next puts new clusters behind its end.
TEST_P(Shapes, EveryClusterLiesInTheFile) {
  MemoryImage image(options_of(GetParam()));
  ASSERT_EQ(image.write({0, 512}, 1), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  const uint64_t cluster_bytes = uint64_t{1} << GetParam().cluster_bits;
  const std::optional<uint64_t> host = image.host_of(0);
  ASSERT_TRUE(host.has_value());
  EXPECT_EQ(*host % cluster_bytes, 0u);
  EXPECT_EQ(image.memory().length_bytes(), *host + cluster_bytes);
}

TEST(QcowDriver, SurroundsAWriteWithTheBackingFile) {
  for (const uint32_t cluster_bits : {9u, 12u, 16u}) {
    QcowShape shape{.cluster_bits = cluster_bits, .backing_filename = "b"};
    MemoryImageOptions options = options_of(shape);
    options.backing = letters(300 * 1024 + 700);
    std::string expected = options.backing;
    expected.resize(1 << 20, '\0');
    MemoryImage image(options);
    const auto write = [&](uint64_t offset, uint64_t length) {
      ASSERT_EQ(image.write({offset, length}, 'X'), absl::OkStatus());
      expected.replace(offset, length, length, 'X');
    };
    write(512, 512);
    write(100 * 1024 + 512, 40 * 1024);
    // Where the backing file ends, and behind that.
    write(300 * 1024, 512);
    write(310 * 1024, 512);
    write(900 * 1024, 512);
    const auto is_right = [&] {
      const auto content = read_bytes(image.driver(), {0, 1 << 20});
      ASSERT_TRUE(content.ok()) << content.status();
      EXPECT_TRUE(*content == expected);
    };
    is_right();
    ASSERT_EQ(image.close_and_check(), absl::OkStatus());
    ASSERT_EQ(image.open(), absl::OkStatus());
    is_right();
  }
}

// It is none of this disk's, also where the disk ends within a cluster.
TEST(QcowDriver, NothingShowsThroughBehindTheEndOfTheDisk) {
  QcowShape shape{.size_bytes = 10 * kCluster + 512,
                  .cluster_bits = 16,
                  .backing_filename = "b"};
  MemoryImageOptions options = options_of(shape);
  options.backing = letters(1 << 20);
  MemoryImage image(options);
  EXPECT_EQ(image.driver().length_bytes(), 10 * kCluster + 512);
  ASSERT_EQ(image.write({0, 512}, 'X'), absl::OkStatus());
  const std::optional<uint64_t> host = image.host_of(0);
  ASSERT_TRUE(host.has_value());
  ASSERT_EQ(image.close(), absl::OkStatus());
  const std::string file = image.memory().content();
  EXPECT_EQ(file.substr(*host + 512, 10 * kCluster),
            options.backing.substr(512, 10 * kCluster));
  EXPECT_EQ(file.substr(*host + 10 * kCluster + 512),
            std::string(65536 - 10 * kCluster - 512, '\0'));
}

TEST(QcowDriver, WithoutItsBackingFileAnImageIsNotOpened) {
  auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, new_qcow({.backing_filename = "b"}));
  EXPECT_TRUE(absl::IsPermissionDenied(qcow::open_qcow(file, {}, {}).status()));
  OpenOptions alone;
  alone.open_backing = false;
  EXPECT_TRUE(qcow::open_qcow(file, alone, {}).ok());
  // Its format cannot be stated.
  OpenContext context;
  ChildRequest asked;
  context.open_child = [&](const ChildRequest& request) {
    asked = request;
    return absl::NotFoundError("gone");
  };
  const absl::Status status = qcow::open_qcow(file, {}, context).status();
  EXPECT_TRUE(absl::StrContains(status.message(), "backing file 'b'"));
  EXPECT_EQ(asked.format, "");
  EXPECT_FALSE(asked.format_can_be_stated);
}

TEST(QcowDriver, WritesNothingThatIsNotFlushedToTables) {
  MemoryImage image(options_of({}));
  ASSERT_EQ(image.write({0, kCluster}, 1), absl::OkStatus());
  EXPECT_EQ(image.file().count(Purpose::kL2Update), 0u);
  EXPECT_EQ(image.file().count(Purpose::kL1Update), 0u);
  ASSERT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.file().count(Purpose::kL2Update), 1u);
  EXPECT_EQ(image.file().count(Purpose::kL1Update), 1u);
  // A sync before and behind; later one is enough.
  EXPECT_EQ(image.file().count(Purpose::kFlushToDisk), 2u);
  ASSERT_EQ(image.write({0, kCluster}, 2), absl::OkStatus());
  ASSERT_EQ(image.flush(), absl::OkStatus());
  EXPECT_EQ(image.file().count(Purpose::kFlushToDisk), 3u);
  EXPECT_EQ(image.file().count(Purpose::kL2Update), 1u);
}

TEST(QcowDriver, SmallCachesAreWrittenBackWithoutAFlush) {
  QcowShape shape{.size_bytes = 64 << 20, .cluster_bits = 9, .l2_bits = 6};
  MemoryImageOptions options = options_of(shape);
  options.open["l2-cache-size"] = "8k";
  options.open["l2-cache-entry-size"] = "512";
  MemoryImage image(options);
  for (uint64_t i = 0; i < 100; ++i) {
    ASSERT_EQ(image.write({i * 300 * 1024, 512}, static_cast<uint8_t>(i + 1)),
              absl::OkStatus());
  }
  EXPECT_GT(image.file().count(Purpose::kL2Update), 0u);
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_TRUE(
        image.reads_as({i * 300 * 1024, 512}, static_cast<uint8_t>(i + 1)));
  }
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
}

TEST(QcowDriver, TriesWhatCannotBlock) {
  MemoryImage image(options_of({}));
  ASSERT_EQ(image.write({0, 2 * kCluster}, 1), absl::OkStatus());
  ASSERT_EQ(image.close(), absl::OkStatus());
  // Not through an observer, which might have to wait.
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, image.memory().content());
  const auto driver = qcow::open_qcow(memory, {}, {});
  ASSERT_TRUE(driver.ok()) << driver.status();
  std::string bytes(3 * kCluster, '\xee');
  const IoVector qiov(bytes.data(), bytes.size());
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 0u) << "no table in memory";
  EXPECT_TRUE(reads_as(**driver, {0, 512}, 1));
  EXPECT_EQ((*driver)->try_read(qiov, Sector(0)), 3 * kCluster);
  EXPECT_EQ(bytes, std::string(2 * kCluster, 1) + std::string(kCluster, 0));
  // Only what has a place.
  std::fill(bytes.begin(), bytes.end(), 7);
  EXPECT_EQ((*driver)->try_write(qiov, Sector(0)), 2 * kCluster);
  EXPECT_TRUE(reads_as(**driver, {0, 2 * kCluster}, 7));
  EXPECT_TRUE(reads_as(**driver, {2 * kCluster, kCluster}, 0));
}

// ---- Block status, and what it is -------------------------------------------

TEST(QcowDriver, SaysWhereItsDataAre) {
  QcowShape shape{.cluster_bits = 12, .l2_bits = 6, .backing_filename = "b"};
  MemoryImageOptions options = options_of(shape);
  options.backing = letters(5 * kCluster + 100);
  MemoryImage image(options);
  ASSERT_EQ(image.write({kCluster, 2 * kCluster}, 1), absl::OkStatus());
  std::string data(kCluster, 'c');
  ASSERT_EQ(image.driver().write_compressed(IoVector(data.data(), data.size()),
                                            Sector(7 * 8)),
            absl::OkStatus());
  const auto status = [&](uint64_t offset, BlockStatusScope scope) {
    auto result = image.driver().block_status(
        {offset, (uint64_t{1} << 20) - offset}, scope);
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  };
  constexpr auto kLayer = BlockStatusScope::kThisLayer;
  BlockStatus found = status(kCluster + 512, kLayer);
  EXPECT_EQ(found.length, 2 * kCluster - 512);
  EXPECT_TRUE(found.data && found.allocated && !found.zero);
  EXPECT_EQ(found.host_offset, image.host_of(kCluster).value_or(0) + 512);
  found = status(0, kLayer);
  EXPECT_EQ(found.length, kCluster);
  EXPECT_FALSE(found.data || found.allocated || found.zero);
  found = status(0, BlockStatusScope::kWholeChain);
  EXPECT_EQ(found.depth, 1);
  EXPECT_EQ(found.length, kCluster);
  // The backing file's last sector is whole.
  found = status(3 * kCluster, kLayer);
  EXPECT_EQ(found.length, 2 * kCluster + 512);
  found = status(5 * kCluster + 512, kLayer);
  EXPECT_EQ(found.length, 2 * kCluster - 512);
  EXPECT_TRUE(found.zero && !found.data && !found.allocated);
  found = status(7 * kCluster, kLayer);
  EXPECT_EQ(found.length, kCluster);
  EXPECT_TRUE(found.data && found.compressed);
  EXPECT_EQ(found.host_offset, std::nullopt);
  // Across tables that are not there.
  found = status(8 * kCluster, kLayer);
  EXPECT_EQ(found.length, (uint64_t{1} << 20) - 8 * kCluster);
  EXPECT_TRUE(found.zero && found.end_of_image);
}

TEST(QcowDriver, SaysWhatItIs) {
  MemoryImageOptions options = options_of({.backing_filename = "base"});
  options.backing = "x";
  MemoryImage image(options);
  const ImageInfo info = image.driver().info();
  EXPECT_EQ(info.format, "qcow");
  EXPECT_EQ(info.virtual_size_bytes, uint64_t{1} << 20);
  EXPECT_EQ(info.cluster_size_bytes, kCluster);
  EXPECT_EQ(info.backing_filename, "base");
  EXPECT_EQ(info.backing_format, "");
  EXPECT_FALSE(info.encrypted || info.dirty || info.corrupt);
  EXPECT_TRUE(info.format_specific.empty());
  EXPECT_EQ(image.driver().limits().optimal_transfer_bytes, kCluster);
  EXPECT_EQ(image.driver().format_name(), "qcow");
  const Capabilities can = image.driver().capabilities();
  EXPECT_TRUE(can.has(Capability::kBlockStatus));
  EXPECT_TRUE(can.has(Capability::kCheck));
  EXPECT_TRUE(can.has(Capability::kWriteCompressed));
  for (const Capability none :
       {Capability::kDiscard, Capability::kWriteZeroes, Capability::kSetLength,
        Capability::kSnapshots, Capability::kBitmaps, Capability::kAmend,
        Capability::kVmState, Capability::kGrows}) {
    EXPECT_FALSE(can.has(none));
  }
  ASSERT_EQ(image.close(), absl::OkStatus());
  ASSERT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
  EXPECT_TRUE(image.driver().read_only());
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kWriteCompressed));
}

TEST(QcowDriver, KnowsItsOptions) {
  auto file = std::make_shared<MemoryDriver>();
  file->set_content(0, new_qcow({.l2_bits = 7}));
  const auto open = [&](const std::string& name, const std::string& value) {
    OpenOptions options;
    options.driver_options[name] = value;
    return qcow::open_qcow(file, options, {}).status();
  };
  EXPECT_EQ(open("l2-cache-size", "1M"), absl::OkStatus());
  EXPECT_EQ(open("l2-cache-entry-size", "1k"), absl::OkStatus());
  for (const char* size : {"256", "768", "2k", "x"}) {
    const absl::Status status = open("l2-cache-entry-size", size);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << size;
    EXPECT_TRUE(absl::StrContains(status.message(), "l2-cache-entry-size"));
  }
  EXPECT_TRUE(absl::StrContains(open("cluster_size", "4k").message(),
                                "unknown option cluster_size"));
  OpenOptions options;
  options.snapshot = SnapshotChoice{.id = "1"};
  EXPECT_TRUE(
      absl::IsUnimplemented(qcow::open_qcow(file, options, {}).status()));
}

// ---- Damaged tables ---------------------------------------------------------

// The image with these entries; the file ends with the table, at 8 KiB.
MemoryImageOptions entries(std::initializer_list<uint64_t> list) {
  return with_bytes(qcow_with_entries({}, list));
}

TEST(QcowDriver, AClusterMustLieOnASector) {
  MemoryImage image(entries({kCluster + 100}));
  const absl::Status status = read_bytes(image.driver(), {0, 512}).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "4196")) << status;
  // Nothing is written any more; the rest can be read.
  EXPECT_TRUE(absl::IsDataLoss(image.write({kCluster, 512}, 1)));
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 0));
  EXPECT_TRUE(image.driver().info().corrupt);
}

// QEMU takes them.
TEST(QcowDriver, AClusterNeedNotLieOnACluster) {
  std::string bytes = qcow_with_entries({}, {8192 + 512});
  bytes.resize(4 * kCluster, 'q');
  MemoryImage image(with_bytes(bytes));
  EXPECT_TRUE(image.reads_as({0, kCluster}, 'q'));
  ASSERT_EQ(image.write({512, 512}, 'w'), absl::OkStatus());
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_EQ(image.memory().content({8192 + 1024, 512}), std::string(512, 'w'));
}

TEST(QcowDriver, WhatLiesBeyondTheFileReadsAsZeroesAndStopsWrites) {
  for (const uint64_t beyond : {uint64_t{2 * kCluster}, uint64_t{1} << 40,
                                (uint64_t{1} << 63) - kCluster}) {
    MemoryImage image(entries({0, beyond}));
    ASSERT_EQ(image.write({0, 512}, 1), absl::OkStatus());
    if (beyond == 2 * kCluster) {
      // That was its place: too late to notice.
      ASSERT_EQ(image.host_of(0), beyond);
      continue;
    }
    EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 0));
    EXPECT_TRUE(absl::IsDataLoss(image.write({0, 512}, 1)));
    EXPECT_TRUE(absl::IsDataLoss(image.write({kCluster, 512}, 1)));
  }
  // Seen in time.
  MemoryImage image(entries({0, 2 * kCluster}));
  EXPECT_TRUE(image.reads_as({kCluster, kCluster}, 0));
  EXPECT_TRUE(absl::IsDataLoss(image.write({0, 512}, 1)));
  // For reading only it does not matter.
  ASSERT_EQ(image.close(), absl::OkStatus());
  ASSERT_EQ(image.open(/*read_only=*/true), absl::OkStatus());
  EXPECT_TRUE(image.reads_as({0, 1 << 20}, 0));
}

TEST(QcowDriver, NoGuestWritesToTables) {
  // The header, the L1 table, the L2 table itself.
  for (const uint64_t place : {uint64_t{0}, uint64_t{512}, kCluster}) {
    const bool is_nothing = place == 0;
    MemoryImage image(entries({place, 512 * 3}));
    const std::string before = image.memory().content();
    const absl::Status status = image.write({0, kCluster}, 'X');
    if (is_nothing) {
      EXPECT_EQ(status, absl::OkStatus());
      continue;
    }
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "would hit the image's"));
    EXPECT_TRUE(image.memory().content() == before);
  }
}

TEST(QcowDriver, TablesMustLieInTheFile) {
  for (const uint64_t table :
       {uint64_t{8192}, uint64_t{4096 + 8}, uint64_t{1} << 62,
        uint64_t{1} << 63, ~uint64_t{0}}) {
    std::string bytes = qcow_with_entries({}, {});
    put64(&bytes, 48, table);
    MemoryImageOptions options = with_bytes(bytes);
    auto file = std::make_shared<MemoryDriver>();
    file->set_content(0, bytes);
    const absl::Status status = qcow::open_qcow(file, {}, {}).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "L1 entry 0")) << status;
    OpenOptions reading;
    reading.read_only = true;
    const auto driver = qcow::open_qcow(file, reading, {});
    ASSERT_TRUE(driver.ok()) << driver.status();
    EXPECT_TRUE(absl::IsDataLoss(read_bytes(**driver, {0, 512}).status()));
    EXPECT_TRUE(file->content() == bytes);
  }
}

TEST(QcowDriver, TablesMustNotOverlap) {
  QcowShape shape{.size_bytes = 4 << 20};
  for (const uint64_t second : {uint64_t{4096}, uint64_t{4096 + 512},
                                uint64_t{4096 - 512}, uint64_t{16}}) {
    std::string bytes = qcow_with_entries(shape, {});
    bytes.resize(32768);
    put64(&bytes, 56, second);
    auto file = std::make_shared<MemoryDriver>();
    file->set_content(0, bytes);
    const absl::Status status = qcow::open_qcow(file, {}, {}).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "overlaps")) << status;
    EXPECT_TRUE(file->content() == bytes);
  }
  // Side by side, at any offset.
  std::string bytes = qcow_with_entries(shape, {});
  bytes.resize(32768);
  put64(&bytes, 56, 8192 + 4);
  MemoryImage image(with_bytes(bytes));
  ASSERT_EQ(image.write({2 << 20, 512}, 1), absl::OkStatus());
  ASSERT_EQ(image.write({0, 512}, 2), absl::OkStatus());
  ASSERT_EQ(image.close_and_check(), absl::OkStatus());
  ASSERT_EQ(image.open(), absl::OkStatus());
  EXPECT_TRUE(image.reads_as({2 << 20, 512}, 1));
  EXPECT_TRUE(image.reads_as({0, 512}, 2));
}

// ---- A file that cannot grow ------------------------------------------------

TEST(QcowDriver, AFullFileSystemIsNoDamage) {
  MemoryImageOptions options = options_of({});
  options.max_file_bytes = 4 * kCluster;
  MemoryImage image(options);
  ASSERT_EQ(image.write({0, kCluster}, 1), absl::OkStatus());
  ASSERT_EQ(image.write({kCluster, kCluster}, 2), absl::OkStatus());
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(errno_of(image.write({8 * kCluster, kCluster}, 3)), ENOSPC);
    EXPECT_EQ(image.flush(), absl::OkStatus());
  }
  EXPECT_TRUE(image.reads_as({8 * kCluster, kCluster}, 0));
  EXPECT_TRUE(image.reads_as({0, kCluster}, 1));
  // What the attempts took was given back.
  EXPECT_EQ(image.close_and_check(), absl::OkStatus());
  EXPECT_EQ(image.memory().length_bytes(), 4 * kCluster);
}

// ---- Life -------------------------------------------------------------------

TEST(QcowDriver, OverAFileThatCannotBeReopenedItCannotEither) {
  MemoryImageOptions options = options_of({});
  MemoryImage image(options);
  // MemoryDriver cannot; the call is refused as a whole.
  EXPECT_FALSE(image.driver().capabilities().has(Capability::kReopen));
  EXPECT_FALSE(image.driver().reopen({.read_only = true}).ok());
  EXPECT_FALSE(image.driver().read_only());
  EXPECT_EQ(image.write({0, 512}, 1), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::testing

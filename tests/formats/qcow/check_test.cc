#include "formats/qcow/check.h"

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/byte_channel.h"
#include "formats/qcow/address.h"
#include "formats/qcow/layout.h"
#include "formats/qcow/table_entry.h"
#include "formats/qcow/used_sectors.h"
#include "gtest/gtest.h"
#include "tests/formats/qcow/qcow_bytes.h"
#include "tests/support/memory_driver.h"
#include "tests/support/observing_driver.h"

namespace spindle::qcow {
namespace {

using testing::MemoryDriver;
using testing::ObservingDriver;
using testing::put64;
using testing::qcow_with_entries;

constexpr uint64_t kCluster = 4096;

struct Report {
  absl::StatusOr<CheckResult> result;
  std::vector<std::string> lines;

  // True if it found these, in this order, and nothing else.
  void expect(const std::vector<std::string>& parts) const {
    ASSERT_TRUE(result.ok()) << result.status();
    SCOPED_TRACE(absl::StrJoin(lines, "\n"));
    EXPECT_EQ(result->corruptions, parts.size());
    EXPECT_EQ(result->leaks, 0u);
    EXPECT_EQ(result->check_errors, 0u);
    ASSERT_EQ(lines.size(), parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_TRUE(absl::StartsWith(lines[i], "ERROR: ")) << lines[i];
      EXPECT_TRUE(absl::StrContains(lines[i], parts[i]))
          << lines[i] << " does not say " << parts[i];
    }
  }
};

Report check(const std::string& image, CheckOptions options = {}) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, image);
  ByteChannel channel(memory);
  Report report{absl::UnknownError(""), {}};
  options.report = [&](absl::string_view line) {
    report.lines.emplace_back(line);
  };
  report.result = check_image(&channel, options);
  return report;
}

// The first cluster behind the table of a small image.
constexpr uint64_t kData = 2 * kCluster;

std::string image_of(std::initializer_list<uint64_t> entries,
                     uint64_t clusters = 4) {
  std::string image = qcow_with_entries({}, entries);
  image.resize(kData + clusters * kCluster);
  return image;
}

uint64_t compressed(uint64_t offset, uint64_t bytes) {
  Geometry geometry;
  geometry.cluster_bits = 12;
  return L2Entry::compressed_at({offset}, bytes, geometry).raw();
}

TEST(Check, OfASoundImage) {
  const Report report = check(
      image_of({kData, kData + kCluster, 0, compressed(kData + 2 * kCluster, 7),
                compressed(kData + 2 * kCluster + 512, 4095),
                kData + 3 * kCluster + 512},
               5));
  report.expect({});
  EXPECT_EQ(report.result->total_clusters, 256u);
  EXPECT_EQ(report.result->allocated_clusters, 5u);
  EXPECT_EQ(report.result->compressed_clusters, 2u);
  EXPECT_EQ(report.result->fragmented_clusters, 3u);
  EXPECT_EQ(report.result->image_end_offset, kData + 4 * kCluster + 512);
  check(testing::new_qcow()).expect({});
  check(testing::new_qcow({.backing_filename = "b"})).expect({});
}

TEST(Check, FindsClustersThatAreNotInTheFile) {
  check(image_of({kData + 4 * kCluster, kData + 3 * kCluster,
                  kData + 3 * kCluster + 512, uint64_t{1} << 62}))
      .expect({"guest offset 0: the cluster at offset 0x6000 lies beyond",
               "guest offset 0x2000: the cluster at offset 0x5200 lies beyond",
               "guest offset 0x3000"});
  check(image_of({compressed(kData + 4 * kCluster - 10, 10),
                  compressed(kData + 4 * kCluster - 20, 21)}))
      .expect({"guest offset 0x1000: the compressed cluster"});
  // The file may end within its last cluster.
  std::string image = image_of({kData}, 1);
  image.resize(kData + 512);
  check(image).expect({});
}

TEST(Check, FindsClustersThatAreUsedTwice) {
  check(image_of({kData, kData, kData + 512}))
      .expect({"guest offset 0x1000: the cluster at offset 0x2000 is used more",
               "guest offset 0x2000"});
  check(image_of({kData, compressed(kData + 4000, 90),
                  compressed(kData + kCluster, 600), kData + kCluster + 512}))
      .expect({"guest offset 0x1000: the compressed cluster",
               "guest offset 0x3000"});
  // Bytes of one sector may belong to two.
  check(image_of({compressed(kData, 700), compressed(kData + 700, 700)}))
      .expect({});
  check(image_of({compressed(kData, 1025), compressed(kData, 1025)}))
      .expect({"guest offset 0x1000"});
}

TEST(Check, FindsClustersInTheMetadata) {
  check(image_of({512, kCluster, compressed(40, 5), compressed(560, 5),
                  kData - 512}))
      .expect(
          {"guest offset 0: the cluster at offset 0x200 overlaps the image's",
           "offset 0x1000 overlaps the image's L2 table",
           "offset 0x28 overlaps the image's header",
           "guest offset 0x4000: the cluster at offset 0x1e00 overlaps"});
}

TEST(Check, FindsEntriesThatSayNothing) {
  check(image_of({kData + 100, compressed(kData, 0)}))
      .expect(
          {"is not a multiple of the sector size", "has no compressed data"});
}

TEST(Check, FindsBadTables) {
  std::string image = qcow_with_entries({.size_bytes = 16 << 20}, {});
  image.resize(16 * kCluster);
  put64(&image, 56, 16 * kCluster);      // beyond the end
  put64(&image, 64, kCluster + 512);     // over the first
  put64(&image, 72, 64);                 // over the L1 table
  put64(&image, 80, 15 * kCluster + 8);  // beyond the end in part
  put64(&image, 88, 8 * kCluster + 4);   // sound
  put64(&image, 8 * kCluster + 4, 4 * kCluster);
  put64(&image, 96, ~uint64_t{0});
  const Report report = check(image);
  report.expect({"L1 entry 1 names an L2 table at offset 0x10000, beyond",
                 "L1 entry 2: L2 table at host offset 4608",
                 "L1 entry 3: L2 table at host offset 64", "L1 entry 4",
                 "L1 entry 6"});
  EXPECT_EQ(report.result->allocated_clusters, 1u);
}

TEST(Check, FindsANameInTheL1Table) {
  std::string image = testing::new_qcow({.backing_filename = "base"});
  put64(&image, kL1TableOffsetOffset, 50);
  check(image).expect({"L1 table at host offset 50", "L1 entry 0"});
}

TEST(Check, GoesOnWhereATableCannotBeRead) {
  auto memory = std::make_shared<MemoryDriver>();
  memory->set_content(0, image_of({kData, kData}));
  auto file = std::make_shared<ObservingDriver>(memory);
  file->fail_at({.purpose = Purpose::kL2Load}, EIO);
  ByteChannel channel(file);
  const auto result = check_image(&channel, {});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->check_errors, 1u);
  EXPECT_EQ(result->corruptions, 0u);
}

TEST(Check, RepairsNothing) {
  CheckOptions options;
  options.fix_leaks = true;
  EXPECT_TRUE(
      absl::IsUnimplemented(check(image_of({}), options).result.status()));
}

TEST(Check, CanBeCancelledAndSaysHowFarItIs) {
  const std::atomic<bool> cancelled{true};
  CheckOptions options;
  options.cancelled = &cancelled;
  EXPECT_TRUE(
      absl::IsCancelled(check(image_of({kData}), options).result.status()));
  uint64_t last = 0;
  options.cancelled = nullptr;
  options.progress = [&](uint64_t done, uint64_t total) {
    EXPECT_LE(done, total);
    last = done;
    EXPECT_EQ(total, 1u);
  };
  EXPECT_TRUE(check(image_of({kData}), options).result.ok());
  EXPECT_EQ(last, 1u);
}

TEST(UsedSectors, WholeAndPart) {
  auto used = UsedSectors::create(64);
  ASSERT_TRUE(used.ok());
  EXPECT_TRUE(used->add({512, 1024}));
  EXPECT_FALSE(used->add({1024, 10}));
  EXPECT_TRUE(used->add({2048, 100}));
  EXPECT_TRUE(used->add({2148, 100}));
  EXPECT_TRUE(used->add({2500, 1000}));
  // Sectors 4 to 6; 5 is whole.
  EXPECT_FALSE(used->add({2600, 1}));
  EXPECT_TRUE(used->add({3500, 1}));
  EXPECT_FALSE(used->add({3072, 512}));
  EXPECT_TRUE(used->add({63 * 512, 512}));
}

}  // namespace
}  // namespace spindle::qcow

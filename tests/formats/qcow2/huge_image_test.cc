// An image of a petabyte, of which a hundred thousand clusters are allocated,
// each under an L2 table of its own: what it takes to read them.
//
// 64 KiB clusters: 2 MiB ones would have no more than 2,048 L2 tables.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/access.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "formats/builtin.h"
#include "formats/qcow2/qcow2_driver.h"
#include "gtest/gtest.h"
#include "tests/support/observing_driver.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kSizeBytes = uint64_t{1} << 50;
constexpr uint64_t kClusters = 100'000;
constexpr uint64_t kStrideBytes = kSizeBytes / kClusters / 65536 * 65536;
constexpr uint64_t kRequestBytes = 512;

// A line of /proc/self/status, which says kibibytes.
uint64_t memory_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(name + ":", 0) == 0)
      return std::stoull(line.substr(name.size() + 1)) << 10;
  }
  ADD_FAILURE() << "no " << name;
  return 0;
}

// How much more memory than before was resident at any time.
class MemoryPeak {
 public:
  MemoryPeak() {
    // What was freed before must not be there to be used again.
    ::malloc_trim(0);
    before_ = memory_bytes("VmRSS");
    // Forgets the peak so far.
    std::ofstream("/proc/self/clear_refs") << 5;
  }
  uint64_t bytes() const {
    const uint64_t peak = memory_bytes("VmHWM");
    return peak - std::min(before_, peak);
  }

 private:
  uint64_t before_ = 0;
};

class HugeImage : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    path_ = new std::string(tmpfs_path("huge"));
    const ImageOpener opener(builtin_drivers(), {});
    CreateOptions create;
    create.size_bytes = kSizeBytes;
    ASSERT_EQ(opener.create(*path_, "qcow2", create), absl::OkStatus());
    const auto driver = opener.open(*path_, "qcow2", {});
    ASSERT_TRUE(driver.ok()) << driver.status();
    for (uint64_t i = 0; i < kClusters; ++i) {
      std::vector<uint64_t> data(kRequestBytes / sizeof(uint64_t), i + 1);
      ASSERT_EQ(
          (*driver)->write(IoVector(data.data(), kRequestBytes), place_of(i)),
          absl::OkStatus());
    }
    ASSERT_EQ((*driver)->close(), absl::OkStatus());
  }
  static void TearDownTestSuite() {
    ::unlink(path_->c_str());
    delete path_;
  }

  static Sector place_of(uint64_t cluster) {
    return Sector::from_byte_offset(cluster * kStrideBytes);
  }

  void open() {
    OpenOptions options;
    options.read_only = true;
    auto file = ImageOpener(builtin_drivers(), {}).open(*path_, "raw", options);
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = std::make_shared<ObservingDriver>(*std::move(file));
    auto driver = qcow2::open_qcow2(file_, options, {});
    ASSERT_TRUE(driver.ok()) << driver.status();
    driver_ = *std::move(driver);
    file_->reset_counts();
  }

  // Reads these clusters, and checks what they hold.
  void read(const std::vector<uint64_t>& clusters) {
    std::vector<uint64_t> data(kRequestBytes / sizeof(uint64_t));
    for (const uint64_t cluster : clusters) {
      ASSERT_EQ(driver_->read(IoVector(data.data(), kRequestBytes),
                              place_of(cluster)),
                absl::OkStatus());
      ASSERT_EQ(data.front(), cluster + 1);
      ASSERT_EQ(data.back(), cluster + 1);
    }
  }
  static std::vector<uint64_t> shuffled(uint64_t count) {
    std::vector<uint64_t> clusters(kClusters);
    std::iota(clusters.begin(), clusters.end(), uint64_t{0});
    std::shuffle(clusters.begin(), clusters.end(),
                 std::mt19937_64(test_seed()));
    clusters.resize(count);
    return clusters;
  }

  static std::string* path_;
  std::shared_ptr<ObservingDriver> file_;
  std::shared_ptr<BlockDriver> driver_;
};

std::string* HugeImage::path_ = nullptr;

TEST_F(HugeImage, ReadingAllOfItTakesBoundedMemory) {
  ASSERT_NO_FATAL_FAILURE(open());
  const MemoryPeak peak;
  ASSERT_NO_FATAL_FAILURE(read(shuffled(kClusters)));
  RecordProperty("peak_bytes", static_cast<int64_t>(peak.bytes()));
  // The cache's slices at least: it is measured.
  EXPECT_GT(peak.bytes(), uint64_t{16} << 20);
  EXPECT_LT(peak.bytes(), uint64_t{64} << 20);
}

TEST_F(HugeImage, ACheckTakesBoundedMemory) {
  OpenOptions options;
  options.read_only = options.for_check = true;
  const auto driver =
      ImageOpener(builtin_drivers(), {}).open(*path_, "qcow2", options);
  ASSERT_TRUE(driver.ok()) << driver.status();
  const MemoryPeak peak;
  const absl::StatusOr<CheckResult> result = (*driver)->check({});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->allocated_clusters, kClusters);
  EXPECT_EQ(result->leaks + result->corruptions + result->check_errors, 0u);
  // 16 bits for each host cluster, and 64 MiB.
  const uint64_t refcounts = result->image_end_offset / 65536 * 2;
  RecordProperty("peak_bytes", static_cast<int64_t>(peak.bytes()));
  EXPECT_LT(peak.bytes(), refcounts + (uint64_t{64} << 20));
}

TEST_F(HugeImage, AReadCostsAtMostOneReadOfMetadata) {
  ASSERT_NO_FATAL_FAILURE(open());
  ASSERT_NO_FATAL_FAILURE(read(shuffled(kClusters)));
  EXPECT_LE(file_->count(Purpose::kL2Load), kClusters);
  EXPECT_EQ(file_->count(Purpose::kReadAio), kClusters);
  EXPECT_EQ(file_->total_count(),
            file_->count(Purpose::kL2Load) + file_->count(Purpose::kReadAio));
}

TEST_F(HugeImage, WhatTheCacheCoversCostsNone) {
  ASSERT_NO_FATAL_FAILURE(open());
  // 4 KiB slices: 16 MiB of the cache's 32.
  const std::vector<uint64_t> some = shuffled(4096);
  ASSERT_NO_FATAL_FAILURE(read(some));
  EXPECT_EQ(file_->count(Purpose::kL2Load), some.size());
  file_->reset_counts();
  for (int again = 0; again < 3; ++again) ASSERT_NO_FATAL_FAILURE(read(some));
  EXPECT_EQ(file_->count(Purpose::kL2Load), 0u);
  EXPECT_EQ(file_->total_count(), 3 * some.size());
}

TEST_F(HugeImage, TheOtherImplementationFindsItSound) {
  EXPECT_EQ(qemu_check({*path_, "qcow2"}), absl::OkStatus());
}

}  // namespace
}  // namespace spindle::testing

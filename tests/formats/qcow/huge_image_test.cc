// An image whose L1 table has 256 MiB, nearly all of it a hole: what it takes
// to open, write and check it.
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

constexpr uint64_t kDiskBytes = uint64_t{64} << 40;
constexpr uint64_t kMostMemoryBytes = uint64_t{32} << 20;

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

TEST(HugeQcow, TakesMemoryForWhatIsThereOnly) {
  const std::string path = tmpfs_path("huge");
  const ImageOpener opener(builtin_drivers(), {});
  CreateOptions create;
  create.size_bytes = kDiskBytes;
  ::malloc_trim(0);
  const uint64_t before = memory_bytes("VmRSS");
  std::ofstream("/proc/self/clear_refs") << 5;  // forgets the peak so far
  ASSERT_EQ(opener.create(path, "qcow", create), absl::OkStatus());
  {
    const auto driver = opener.open(path, "qcow", {});
    ASSERT_TRUE(driver.ok()) << driver.status();
    EXPECT_EQ((*driver)->length_bytes(), kDiskBytes);
    std::string data(512, 'x');
    const IoVector qiov(data.data(), data.size());
    const Sector last(kDiskBytes / 512 - 1);
    ASSERT_EQ((*driver)->write(qiov, last), absl::OkStatus());
    ASSERT_EQ((*driver)->close(), absl::OkStatus());
  }
  OpenOptions reading;
  reading.read_only = true;
  const auto driver = opener.open(path, "qcow", reading);
  ASSERT_TRUE(driver.ok()) << driver.status();
  const auto result = (*driver)->check({});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->corruptions, 0u);
  EXPECT_EQ(result->allocated_clusters, 1u);
  const uint64_t peak = memory_bytes("VmHWM");
  EXPECT_LT(peak - std::min(before, peak), kMostMemoryBytes);
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace spindle::testing

// qcow2 against raw: 4 KiB reads and overwrites of allocated data, and first
// writes, through the driver, on files below TMPDIR.

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "benchmarks/offsets.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/io_vector.h"
#include "formats/builtin.h"

namespace spindle {
namespace {

constexpr uint64_t kImageBytes = 64 << 20;
constexpr size_t kRequestBytes = 4096;

// A file that is removed at the end.
class Image {
 public:
  explicit Image(const std::string& format)
      : format_(format), path_(make_path()) {}
  ~Image() {
    if (driver_ != nullptr) (void)driver_->close();
    ::unlink(path_.c_str());
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  // A new, empty image.
  absl::Status make() {
    driver_ = nullptr;
    const ImageOpener opener(builtin_drivers(), {});
    CreateOptions options;
    options.size_bytes = kImageBytes;
    absl::Status status = opener.create(path_, format_, options);
    if (!status.ok()) return status;
    auto driver = opener.open(path_, format_, {});
    if (!driver.ok()) return driver.status();
    driver_ = *std::move(driver);
    return absl::OkStatus();
  }
  absl::Status fill() {
    std::vector<uint8_t> bytes(1 << 20, 0x5a);
    const IoVector qiov(bytes.data(), bytes.size());
    for (uint64_t offset = 0; offset < kImageBytes; offset += bytes.size()) {
      const absl::Status status =
          driver_->write(qiov, Sector::from_byte_offset(offset));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  BlockDriver& driver() { return *driver_; }

 private:
  static std::string make_path() {
    const char* directory = std::getenv("TEST_TMPDIR");
    if (directory == nullptr) directory = std::getenv("TMPDIR");
    return absl::StrCat(directory != nullptr ? directory : "/tmp",
                        "/spindle-benchmark.", ::getpid());
  }

  const std::string format_;
  const std::string path_;
  std::shared_ptr<BlockDriver> driver_;
};

void run(benchmark::State& state, const std::string& format, bool writes) {
  Image image(format);
  absl::Status status = image.make();
  if (status.ok()) status = image.fill();
  std::vector<uint8_t> bytes(kRequestBytes, 1);
  const IoVector qiov(bytes.data(), bytes.size());
  const benchmarks::Workload work = benchmarks::scattered_reads(kImageBytes, 0);
  uint64_t i = 0;
  for (auto _ : state) {
    if (!status.ok()) break;
    const Sector sector = Sector::from_byte_offset(work.offset(i++));
    status = writes ? image.driver().write(qiov, sector)
                    : image.driver().read(qiov, sector);
  }
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  state.SetItemsProcessed(state.iterations());
}

void raw_read(benchmark::State& state) { run(state, "raw", false); }
void qcow2_read(benchmark::State& state) { run(state, "qcow2", false); }
void raw_overwrite(benchmark::State& state) { run(state, "raw", true); }
void qcow2_overwrite(benchmark::State& state) { run(state, "qcow2", true); }

// Each write goes to a cluster that has no content yet.
void first_write(benchmark::State& state, const std::string& format) {
  constexpr uint64_t kClusterBytes = 65536;
  Image image(format);
  absl::Status status = image.make();
  std::vector<uint8_t> bytes(kRequestBytes, 1);
  const IoVector qiov(bytes.data(), bytes.size());
  uint64_t offset = 0;
  for (auto _ : state) {
    if (offset == kImageBytes) {
      state.PauseTiming();
      status = image.make();
      offset = 0;
      state.ResumeTiming();
    }
    if (!status.ok()) break;
    status = image.driver().write(qiov, Sector::from_byte_offset(offset));
    offset += kClusterBytes;
  }
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  state.SetItemsProcessed(state.iterations());
}

void raw_first_write(benchmark::State& state) { first_write(state, "raw"); }
void qcow2_first_write(benchmark::State& state) { first_write(state, "qcow2"); }

BENCHMARK(raw_read)->UseRealTime();
BENCHMARK(qcow2_read)->UseRealTime();
BENCHMARK(raw_overwrite)->UseRealTime();
BENCHMARK(qcow2_overwrite)->UseRealTime();
BENCHMARK(raw_first_write)->UseRealTime();
BENCHMARK(qcow2_first_write)->UseRealTime();

}  // namespace
}  // namespace spindle

BENCHMARK_MAIN();

// raw against a bare preadv loop: 4 KiB reads of a file in the page cache, one
// after another, at the same random offsets; also with scattered memory, and
// the read that must not block.  Files live below TMPDIR.

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/raw/file_driver.h"
#include "formats/raw/owned_fd.h"

namespace spindle {
namespace {

constexpr uint64_t kImageBytes = 64 << 20;
constexpr size_t kRequestBytes = 4096;

// A file of kImageBytes, all in the page cache, for the life of the program.
class Image {
 public:
  Image() {
    const char* const folder = std::getenv("TMPDIR");
    path_ = absl::StrCat(folder != nullptr ? folder : "/tmp", "/raw_benchmark_",
                         ::getpid());
    fd_ = OwnedFd(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const std::vector<uint8_t> bytes(1 << 20, 0x5a);
    for (uint64_t offset = 0; offset < kImageBytes; offset += bytes.size()) {
      if (::pwrite(fd_.get(), bytes.data(), bytes.size(),
                   static_cast<off_t>(offset)) !=
          static_cast<ssize_t>(bytes.size())) {
        std::perror(path_.c_str());
        std::exit(1);
      }
    }
    driver_ = *FileDriver::open(path_, OpenOptions{});
  }
  ~Image() { ::unlink(path_.c_str()); }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;

  int fd() const { return fd_.get(); }
  BlockDriver& driver() const { return *driver_; }

 private:
  std::string path_;
  OwnedFd fd_;
  std::shared_ptr<BlockDriver> driver_;
};

Image& image() {
  static Image the_image;
  return the_image;
}

// The same walk over the image for everyone.
class Offsets {
 public:
  uint64_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % (kImageBytes / kRequestBytes) * kRequestBytes;
  }

 private:
  uint64_t state_ = 1;
};

// A request's memory, in `count` segments.
std::vector<iovec> segments_of(std::vector<uint8_t>* memory, size_t count) {
  std::vector<iovec> segments(count);
  const size_t each = memory->size() / count;
  for (size_t i = 0; i < count; ++i)
    segments[i] = {memory->data() + i * each, each};
  return segments;
}

void BM_BarePreadv(benchmark::State& state) {
  std::vector<uint8_t> memory(kRequestBytes);
  const std::vector<iovec> segments =
      segments_of(&memory, static_cast<size_t>(state.range(0)));
  Offsets offsets;
  const int fd = image().fd();
  for (auto _ : state) {
    const ssize_t got =
        ::preadv(fd, segments.data(), static_cast<int>(segments.size()),
                 static_cast<off_t>(offsets.next()));
    if (got != static_cast<ssize_t>(kRequestBytes))
      state.SkipWithError("short read");
  }
}
BENCHMARK(BM_BarePreadv)->Arg(1)->Arg(8)->Arg(16);

void BM_RawRead(benchmark::State& state) {
  std::vector<uint8_t> memory(kRequestBytes);
  const std::vector<iovec> segments =
      segments_of(&memory, static_cast<size_t>(state.range(0)));
  const IoVector qiov(segments);
  Offsets offsets;
  BlockDriver& driver = image().driver();
  for (auto _ : state) {
    const absl::Status status =
        driver.read(qiov, Sector::from_byte_offset(offsets.next()));
    if (!status.ok()) state.SkipWithError("read failed");
  }
}
BENCHMARK(BM_RawRead)->Arg(1)->Arg(8)->Arg(16);

void BM_RawTryRead(benchmark::State& state) {
  std::vector<uint8_t> memory(kRequestBytes);
  const IoVector qiov(memory.data(), memory.size());
  Offsets offsets;
  BlockDriver& driver = image().driver();
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        driver.try_read(qiov, Sector::from_byte_offset(offsets.next())));
  }
}
BENCHMARK(BM_RawTryRead);

void BM_BarePwritev(benchmark::State& state) {
  std::vector<uint8_t> memory(kRequestBytes);
  const iovec segment{memory.data(), memory.size()};
  Offsets offsets;
  const int fd = image().fd();
  for (auto _ : state) {
    const ssize_t done =
        ::pwritev(fd, &segment, 1, static_cast<off_t>(offsets.next()));
    if (done != static_cast<ssize_t>(kRequestBytes))
      state.SkipWithError("short write");
  }
}
BENCHMARK(BM_BarePwritev);

void BM_RawWrite(benchmark::State& state) {
  std::vector<uint8_t> memory(kRequestBytes);
  const IoVector qiov(memory.data(), memory.size());
  Offsets offsets;
  BlockDriver& driver = image().driver();
  for (auto _ : state) {
    const absl::Status status =
        driver.write(qiov, Sector::from_byte_offset(offsets.next()));
    if (!status.ok()) state.SkipWithError("write failed");
  }
}
BENCHMARK(BM_RawWrite);

}  // namespace
}  // namespace spindle

BENCHMARK_MAIN();

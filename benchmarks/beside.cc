#include "benchmarks/beside.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/offsets.h"
#include "engine/errors.h"
#include "engine/io_vector.h"

namespace spindle::benchmarks {
namespace {

constexpr uint64_t kRequestBytes = 4096;
constexpr uint64_t kClusterBytes = 65536;

using Step = absl::FunctionRef<bool(uint64_t number)>;

// How many steps a second `read` makes for `span`.
double read_for(absl::Duration span, Step read, std::atomic<bool>* failed) {
  const auto begin = std::chrono::steady_clock::now();
  const auto end = begin + absl::ToChronoNanoseconds(span);
  uint64_t done = 0;
  auto now = begin;
  while (now < end) {
    for (int i = 0; i < 32; ++i) {
      if (!read(done++)) *failed = true;
    }
    now = std::chrono::steady_clock::now();
  }
  return static_cast<double>(done) /
         std::chrono::duration<double>(now - begin).count();
}

// In turns, so that the machine's mood hits both.
absl::StatusOr<double> kept(absl::Duration span, Step read, Step write) {
  std::atomic<bool> failed{false};
  double alone = 0, beside = 0;
  uint64_t written = 0;
  for (int turn = 0; turn < 4; ++turn) {
    alone += read_for(span / 4, read, &failed);
    std::atomic<bool> stop{false};
    std::thread writer([&] {
      while (!stop) {
        if (!write(written++)) failed = true;
      }
    });
    beside += read_for(span / 4, read, &failed);
    stop = true;
    writer.join();
  }
  if (failed) return absl::InternalError("a request failed");
  return beside / alone;
}

class File {
 public:
  File(const std::string& path, int flags)
      : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0600)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

}  // namespace

absl::StatusOr<double> kept_beside_flushes(const FreshImage& image,
                                           absl::Duration span) {
  absl::Status status = image.make();
  if (!status.ok()) return status;
  auto driver = open_driver(image.file(), /*read_only=*/false);
  if (!driver.ok()) return driver.status();
  const uint64_t half = image.bytes() / 2;
  std::vector<uint8_t> piece(1 << 20, 0x5a);
  for (uint64_t offset = 0; status.ok() && offset < half;
       offset += piece.size()) {
    status = (*driver)->write(IoVector(piece.data(), piece.size()),
                              Sector::from_byte_offset(offset));
  }
  if (status.ok()) status = (*driver)->flush();
  if (!status.ok()) return status;

  const Workload reads = scattered_reads(half, UINT64_MAX);
  std::vector<uint8_t> read_buffer(kRequestBytes);
  std::vector<uint8_t> write_buffer(kRequestBytes, 0xa5);
  const IoVector into(read_buffer.data(), read_buffer.size());
  const IoVector from(write_buffer.data(), write_buffer.size());
  absl::StatusOr<double> result = kept(
      span,
      [&](uint64_t i) {
        return (*driver)
            ->read(into, Sector::from_byte_offset(reads.offset(i)))
            .ok();
      },
      [&](uint64_t i) {
        const uint64_t offset = half + i * kClusterBytes % half;
        return (*driver)->write(from, Sector::from_byte_offset(offset)).ok() &&
               (*driver)->flush().ok();
      });
  const absl::Status closed = (*driver)->close();
  if (!closed.ok()) return closed;
  return result;
}

absl::StatusOr<double> kept_beside_syncs(const std::string& path,
                                         absl::Duration span) {
  const File from(path, O_RDONLY);
  const std::string other = path + ".beside";
  const File to(other, O_RDWR | O_CREAT | O_TRUNC);
  ::unlink(other.c_str());
  struct stat about;
  if (from.fd() < 0 || to.fd() < 0 || ::fstat(from.fd(), &about) != 0)
    return errno_status(errno, absl::StrCat("open of ", path));
  const Workload reads =
      scattered_reads(static_cast<uint64_t>(about.st_size) / 2, UINT64_MAX);
  std::vector<uint8_t> read_buffer(kRequestBytes);
  const std::vector<uint8_t> write_buffer(kRequestBytes, 0xa5);
  return kept(
      span,
      [&](uint64_t i) {
        return ::pread(from.fd(), read_buffer.data(), kRequestBytes,
                       static_cast<off_t>(reads.offset(i))) == kRequestBytes;
      },
      [&](uint64_t i) {
        return ::pwrite(to.fd(), write_buffer.data(), kRequestBytes,
                        static_cast<off_t>(i * kClusterBytes)) ==
                   kRequestBytes &&
               ::fdatasync(to.fd()) == 0;
      });
}

}  // namespace spindle::benchmarks

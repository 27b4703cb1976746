#include "formats/raw/fd_io.h"

#include <errno.h>
#include <limits.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>

#include "absl/base/attributes.h"
#include "absl/base/optimization.h"
#include "absl/types/span.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

// The kernel's MAX_RW_COUNT: it cuts longer transfers short.
constexpr uint64_t kMaxBytesPerCall = 0x7ffff000;
// Enough for what guests send; on the stack of every request.
constexpr size_t kUsualSegments = 32;
constexpr size_t kMaxSegments = IOV_MAX;

struct Reader {
  static constexpr int kErrorAtEnd = 0;  // the file ended
  static ssize_t transfer(int fd, const iovec* segments, size_t count,
                          uint64_t offset) {
    // pread spares the kernel the copy of the segment list.
    if (count == 1) {
      return ::pread(fd, segments->iov_base, segments->iov_len,
                     static_cast<off_t>(offset));
    }
    return ::preadv(fd, segments, static_cast<int>(count),
                    static_cast<off_t>(offset));
  }
};

struct Writer {
  static constexpr int kErrorAtEnd = ENOSPC;  // the file takes no more
  static ssize_t transfer(int fd, const iovec* segments, size_t count,
                          uint64_t offset) {
    if (count == 1) {
      return ::pwrite(fd, segments->iov_base, segments->iov_len,
                      static_cast<off_t>(offset));
    }
    return ::pwritev(fd, segments, static_cast<int>(count),
                     static_cast<off_t>(offset));
  }
};

struct Job {
  int fd;
  const IoVector& qiov;
  uint64_t skip_bytes;
  uint64_t length_bytes;
  uint64_t offset;
  uint32_t unit_bytes;
};

template <typename Direction, size_t kSegments>
inline Transfer transfer_all(const Job& job) {
  iovec segments[kSegments];  // deliberately not initialised: this is the hot
                              // path
  uint64_t done = 0;
  while (done < job.length_bytes) {
    const uint64_t piece = std::min(
        job.length_bytes - done, align_down(kMaxBytesPerCall, job.unit_bytes));
    const size_t count = job.qiov.export_segments(
        job.skip_bytes + done, piece, absl::MakeSpan(segments, kSegments));
    const ssize_t moved =
        Direction::transfer(job.fd, segments, count, job.offset + done);
    if (ABSL_PREDICT_FALSE(moved < 0)) {
      if (errno == EINTR) continue;
      return {done, errno};
    }
    if (ABSL_PREDICT_FALSE(moved == 0)) return {done, Direction::kErrorAtEnd};
    done += static_cast<uint64_t>(moved);
    // A direct transfer stops off its grid only where the file ends (reading)
    // or where something is wrong (writing).
    if (ABSL_PREDICT_FALSE(!is_aligned(done, job.unit_bytes))) {
      return {done, done < job.length_bytes ? Direction::kErrorAtEnd : 0};
    }
  }
  return {done, 0};
}

// Keeps the 16 KiB of segments out of the stack frame of ordinary requests.
template <typename Direction>
ABSL_ATTRIBUTE_NOINLINE Transfer transfer_many_segments(const Job& job) {
  return transfer_all<Direction, kMaxSegments>(job);
}

template <typename Direction>
inline Transfer transfer(const Job& job) {
  if (ABSL_PREDICT_TRUE(job.qiov.segment_count() <= kUsualSegments)) {
    return transfer_all<Direction, kUsualSegments>(job);
  }
  return transfer_many_segments<Direction>(job);
}

template <size_t kSegments>
inline Transfer read_once_without_waiting(int fd, const IoVector& qiov,
                                          uint64_t offset) {
  iovec segments[kSegments];
  const size_t count = qiov.export_segments(
      0, kMaxBytesPerCall, absl::MakeSpan(segments, kSegments));
  const ssize_t moved = ::preadv2(fd, segments, static_cast<int>(count),
                                  static_cast<off_t>(offset), RWF_NOWAIT);
  if (moved < 0) return {0, errno};
  return {static_cast<uint64_t>(moved), 0};
}

ABSL_ATTRIBUTE_NOINLINE Transfer read_many_segments_without_waiting(
    int fd, const IoVector& qiov, uint64_t offset) {
  return read_once_without_waiting<kMaxSegments>(fd, qiov, offset);
}

}  // namespace

Transfer read_fully(int fd, const IoVector& qiov, uint64_t offset,
                    uint32_t unit_bytes) {
  return transfer<Reader>(
      {fd, qiov, 0, qiov.length_bytes(), offset, unit_bytes});
}

Transfer write_fully(int fd, const IoVector& qiov, uint64_t skip_bytes,
                     uint64_t length_bytes, uint64_t offset,
                     uint32_t unit_bytes) {
  return transfer<Writer>(
      {fd, qiov, skip_bytes, length_bytes, offset, unit_bytes});
}

Transfer read_without_waiting(int fd, const IoVector& qiov, uint64_t offset) {
  if (ABSL_PREDICT_TRUE(qiov.segment_count() <= kUsualSegments)) {
    return read_once_without_waiting<kUsualSegments>(fd, qiov, offset);
  }
  return read_many_segments_without_waiting(fd, qiov, offset);
}

}  // namespace spindle

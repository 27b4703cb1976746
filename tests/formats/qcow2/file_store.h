// A file as a BlockDriver, no more than `create` needs: grows, knows zeroes.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_FILE_STORE_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_FILE_STORE_H_

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/io_vector.h"

namespace spindle::testing {

class FileStore final : public BlockDriver {
 public:
  // Makes an empty file.
  explicit FileStore(const std::string& path)
      : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC,
                   0644)) {}
  ~FileStore() override { ::close(fd_); }

  absl::Status read(const IoVector& qiov, Sector sector) override {
    qiov.fill(0);
    uint64_t offset = sector.byte_offset();
    for (size_t i = 0; i < qiov.segment_count(); ++i) {
      const iovec segment = qiov.segment(i);
      if (::pread(fd_, segment.iov_base, segment.iov_len,
                  static_cast<off_t>(offset)) < 0) {
        return errno_status(errno, "pread");
      }
      offset += segment.iov_len;
    }
    return absl::OkStatus();
  }

  absl::Status write(const IoVector& qiov, Sector sector) override {
    uint64_t offset = sector.byte_offset();
    // Within the last, partial sector a write stops at the end of the file.
    const uint64_t length = length_bytes();
    const uint64_t end = offset + qiov.length_bytes();
    const bool trim = end > length && end <= align_up(length, kSectorSizeBytes);
    const IoVector kept = trim ? qiov.slice(0, length - offset) : qiov;
    for (size_t i = 0; i < kept.segment_count(); ++i) {
      const iovec segment = kept.segment(i);
      if (::pwrite(fd_, segment.iov_base, segment.iov_len,
                   static_cast<off_t>(offset)) !=
          static_cast<ssize_t>(segment.iov_len)) {
        return errno_status(errno, "pwrite");
      }
      offset += segment.iov_len;
    }
    return absl::OkStatus();
  }

  absl::Status flush() override { return absl::OkStatus(); }
  absl::string_view format_name() const override { return "test file"; }
  bool read_only() const override { return false; }
  Capabilities capabilities() const override {
    return {Capability::kGrows, Capability::kSetLength,
            Capability::kWriteZeroes};
  }

  uint64_t length_bytes() const override {
    struct stat status = {};
    return ::fstat(fd_, &status) == 0 ? static_cast<uint64_t>(status.st_size)
                                      : 0;
  }

  absl::Status set_length(uint64_t length, SetLengthMode mode) override {
    if (mode == SetLengthMode::kGrowOnly && length <= length_bytes())
      return absl::OkStatus();
    if (::ftruncate(fd_, static_cast<off_t>(length)) != 0)
      return errno_status(errno, "ftruncate");
    return absl::OkStatus();
  }

  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags) override {
    if (::fallocate(fd_, FALLOC_FL_ZERO_RANGE, static_cast<off_t>(range.offset),
                    static_cast<off_t>(range.length)) != 0) {
      return absl::UnimplementedError("fallocate");
    }
    return absl::OkStatus();
  }

 private:
  const int fd_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_FILE_STORE_H_

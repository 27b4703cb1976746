#include "formats/raw/posix_driver.h"

#include <errno.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/base/macros.h"
#include "absl/base/optimization.h"
#include "engine/checked_math.h"

namespace spindle {

PosixDriver::PosixDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes)
    : file_(std::move(file)),
      fd_(file_->fd()),
      unit_bytes_(file_->unit_bytes()),
      length_bytes_(length_bytes),
      try_read_(initial_try_read()) {}

PosixDriver::TryRead PosixDriver::initial_try_read() const {
  if (file_->direct()) return TryRead::kNever;
  return file_->on_tmpfs() ? TryRead::kPlain : TryRead::kNoWait;
}

bool PosixDriver::can_try_read() const {
  return try_read_.load(std::memory_order_relaxed) != TryRead::kNever;
}

absl::Status PosixDriver::read(const IoVector& qiov, Sector sector) {
  const uint64_t offset = sector.byte_offset();
  const Transfer transfer = read_fully(fd_, qiov, offset, unit_bytes_);
  if (ABSL_PREDICT_TRUE(transfer.bytes == qiov.length_bytes()))
    return absl::OkStatus();
  return finish_short_read(qiov, offset, transfer);
}

absl::Status PosixDriver::finish_short_read(const IoVector& qiov,
                                            uint64_t offset,
                                            const Transfer& transfer) {
  if (transfer.error_number != 0) {
    return file_->error_at(transfer.error_number, "preadv",
                           offset + transfer.bytes);
  }
  return read_beyond_end(qiov, offset, transfer.bytes);
}

uint64_t PosixDriver::try_read(const IoVector& qiov, Sector sector) {
  const TryRead how = try_read_.load(std::memory_order_relaxed);
  if (how == TryRead::kNever) return 0;
  if (how == TryRead::kPlain)
    return read(qiov, sector).ok() ? qiov.length_bytes() : 0;

  const Transfer transfer =
      read_without_waiting(fd_, qiov, sector.byte_offset());
  if (ABSL_PREDICT_TRUE(transfer.bytes == qiov.length_bytes()))
    return transfer.bytes;
  if (transfer.error_number == EOPNOTSUPP || transfer.error_number == ENOSYS) {
    try_read_.store(TryRead::kNever, std::memory_order_relaxed);
  }
  return align_down(transfer.bytes, kSectorSizeBytes);
}

absl::Status PosixDriver::write_bytes(const IoVector& qiov,
                                      uint64_t length_bytes, uint64_t offset) {
  const uint64_t direct_bytes = align_down(length_bytes, unit_bytes_);
  Transfer transfer =
      write_fully(fd_, qiov, 0, direct_bytes, offset, unit_bytes_);
  if (ABSL_PREDICT_FALSE(transfer.error_number == 0 &&
                         direct_bytes < length_bytes)) {
    // The end of the file lies within a unit of O_DIRECT: those bytes go
    // through the page cache, which the kernel keeps coherent.
    transfer =
        write_fully(file_->buffered_fd(), qiov, direct_bytes,
                    length_bytes - direct_bytes, offset + direct_bytes, 1);
    transfer.bytes += direct_bytes;
  }
  if (ABSL_PREDICT_TRUE(transfer.bytes == length_bytes))
    return absl::OkStatus();
  // A direct write that stopped off its grid gives no errno of its own.
  return file_->error_at(
      transfer.error_number != 0 ? transfer.error_number : EIO, "pwritev",
      offset + transfer.bytes);
}

absl::Status PosixDriver::flush() { return file_->flush(); }

DriverLimits PosixDriver::limits() const {
  DriverLimits limits;
  limits.request_alignment_bytes =
      std::max<uint32_t>(limits.request_alignment_bytes, unit_bytes_);
  limits.memory_alignment_bytes = unit_bytes_;
  // The kernel locks a regular file for each; where that is short (tmpfs), two
  // threads are the faster all the same.
  limits.writes_take_turns = !file_->direct() && !file_->on_tmpfs();
  return limits;
}

ImageInfo PosixDriver::info() const {
  ImageInfo info;
  info.format = std::string(format_name());
  info.filename = filename();
  info.virtual_size_bytes = length_bytes();
  struct stat facts = {};
  if (::fstat(fd_, &facts) == 0) {
    info.actual_size_bytes =
        static_cast<uint64_t>(facts.st_blocks) * 512;  // by definition
  }
  return info;
}

void PosixDriver::note_length_at_least(uint64_t length_bytes) {
  uint64_t known = length_bytes_.load(std::memory_order_relaxed);
  while (known < length_bytes &&
         !length_bytes_.compare_exchange_weak(known, length_bytes,
                                              std::memory_order_release,
                                              std::memory_order_relaxed)) {
  }
}

void PosixDriver::relearn_length() {
  const absl::StatusOr<uint64_t> measured = file_->measure_length();
  if (measured.ok()) note_length_at_least(*measured);
}

absl::Status PosixDriver::reopen(const ReopenOptions& options) {
  absl::Status status = options.refuse_options();
  if (status.ok()) status = file_->reopen(options);
  if (!status.ok() || !options.direct.has_value()) return status;
  unit_bytes_ = file_->unit_bytes();
  try_read_.store(initial_try_read(), std::memory_order_relaxed);
  return status;
}

absl::Status PosixDriver::inactivate() {
  if (!read_only()) {
    absl::Status status = flush();
    if (!status.ok()) return status;
  }
  return file_->release_locks();
}

absl::Status PosixDriver::activate() {
  absl::Status status = file_->take_locks();
  if (!status.ok()) return status;
  // Whoever had the file meanwhile may have changed its length.
  const absl::StatusOr<uint64_t> measured = file_->measure_length();
  if (!measured.ok()) {
    file_->release_locks().IgnoreError();  // the first error counts
    return measured.status();
  }
  set_known_length(*measured);
  return absl::OkStatus();
}

absl::Status PosixDriver::close() {
  const absl::Status flushed = read_only() ? absl::OkStatus() : flush();
  const absl::Status released = file_->release_locks();
  return flushed.ok() ? released : flushed;
}

}  // namespace spindle

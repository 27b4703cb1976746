#include "tests/fuzz/fuzz_file.h"

#include <algorithm>
#include <cerrno>

#include "engine/errors.h"
#include "engine/io_vector.h"

namespace spindle::testing {

Capabilities FuzzFile::capabilities() const {
  return {Capability::kDiscard,
          Capability::kWriteZeroes,
          Capability::kWriteZeroesMayUnmap,
          Capability::kWriteZeroesNoFallback,
          Capability::kSetLength,
          Capability::kGrows};
}

absl::Status FuzzFile::grow_to(uint64_t length_bytes) {
  if (length_bytes > kMaxBytes) return errno_status(ENOSPC, "the file is full");
  if (length_bytes > bytes_.size()) bytes_.resize(length_bytes);
  return absl::OkStatus();
}

absl::Status FuzzFile::read(const IoVector& qiov, Sector sector) {
  const uint64_t offset = std::min(sector.byte_offset(), length_bytes());
  const uint64_t bytes = std::min(qiov.length_bytes(), length_bytes() - offset);
  if (bytes != 0) qiov.copy_from(0, &bytes_[offset], bytes);
  qiov.fill(bytes, qiov.length_bytes() - bytes, 0);
  return absl::OkStatus();
}

absl::Status FuzzFile::write(const IoVector& qiov, Sector sector) {
  const uint64_t offset = sector.byte_offset();
  absl::Status status = grow_to(offset + qiov.length_bytes());
  if (status.ok() && !qiov.empty())
    qiov.copy_to(0, &bytes_[offset], qiov.length_bytes());
  return status;
}

absl::Status FuzzFile::discard(ByteRange range) {
  const uint64_t end = std::min(range.end(), length_bytes());
  if (range.offset < end) {
    std::fill(bytes_.begin() + static_cast<ptrdiff_t>(range.offset),
              bytes_.begin() + static_cast<ptrdiff_t>(end), uint8_t{0});
  }
  return absl::OkStatus();
}

absl::Status FuzzFile::write_zeroes(ByteRange range, WriteZeroesFlags) {
  absl::Status status = grow_to(range.end());
  return status.ok() ? discard(range) : status;
}

absl::Status FuzzFile::set_length(uint64_t length_bytes, SetLengthMode mode) {
  if (mode == SetLengthMode::kExact && length_bytes < bytes_.size())
    bytes_.resize(length_bytes);
  return grow_to(length_bytes);
}

}  // namespace spindle::testing

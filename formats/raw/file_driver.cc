#include "formats/raw/file_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/base/macros.h"
#include "absl/base/optimization.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "engine/aligned_buffer.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle {
namespace {

// Zeroes are written in pieces, aligned for O_DIRECT.
constexpr uint64_t kBlockBytes = 4096;
constexpr uint64_t kZeroBufferBytes = uint64_t{256} << 10;
constexpr uint64_t kLongestFile = std::numeric_limits<int64_t>::max();

absl::Status truncation_error(const PosixFile& file, int error_number) {
  return with_qemu_words(
      file.error(error_number, "ftruncate"),
      absl::StrCat("Could not resize file: ", std::strerror(error_number)));
}

bool means_unsupported(int error_number) {
  return error_number == EOPNOTSUPP || error_number == ENOSYS ||
         error_number == ENODEV;
}

BlockStatus status_of(uint64_t offset, uint64_t length_bytes, bool data) {
  BlockStatus status;
  status.length = length_bytes;
  status.allocated = true;  // there is no other layer to look into
  status.data = data;
  status.zero = !data;
  status.host_offset = offset;
  return status;
}

// Finds where the run of data or of hole that `range` begins in ends.  Others
// may write and punch meanwhile; what is not certain to be a hole is data.
BlockStatus seek_status(int fd, ByteRange range) {
  const auto start = static_cast<off_t>(range.offset);
  const off_t data = ::lseek(fd, start, SEEK_DATA);
  if (data < 0) {
    // ENXIO: nothing but hole from here to the end of the file.
    return status_of(range.offset, range.length, errno != ENXIO);
  }
  if (data > start) {
    const auto hole_bytes = static_cast<uint64_t>(data - start);
    return status_of(range.offset, std::min(range.length, hole_bytes), false);
  }
  const off_t hole = ::lseek(fd, start, SEEK_HOLE);
  if (hole <= start) return status_of(range.offset, range.length, true);
  return status_of(range.offset,
                   std::min(range.length, static_cast<uint64_t>(hole - start)),
                   true);
}

}  // namespace

absl::StatusOr<std::shared_ptr<FileDriver>> FileDriver::open(
    const std::string& filename, const OpenOptions& options) {
  absl::StatusOr<std::unique_ptr<PosixFile>> file =
      PosixFile::open(filename, PosixFileKind::kRegular, options);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> length_bytes = (*file)->measure_length();
  if (!length_bytes.ok()) return length_bytes.status();
  return absl::WrapUnique(new FileDriver(*std::move(file), *length_bytes));
}

FileDriver::FileDriver(std::unique_ptr<PosixFile> file, uint64_t length_bytes)
    : PosixDriver(std::move(file), length_bytes) {}

Capabilities FileDriver::capabilities() const {
  Capabilities capabilities = {Capability::kDiscard,
                               Capability::kWriteZeroes,
                               Capability::kWriteZeroesMayUnmap,
                               Capability::kWriteZeroesNoFallback,
                               Capability::kBlockStatus,
                               Capability::kSetLength,
                               Capability::kGrows,
                               Capability::kReopen,
                               Capability::kInactivate};
  if (can_try_read()) capabilities.add(Capability::kTryRead);
  if (file().on_tmpfs() && !file().direct())
    capabilities.add(Capability::kTryWrite);
  return capabilities;
}

absl::Status FileDriver::read_beyond_end(const IoVector& qiov, uint64_t,
                                         uint64_t done) {
  qiov.fill(done, qiov.length_bytes() - done, 0);
  return absl::OkStatus();
}

uint64_t FileDriver::clip_to_last_sector(uint64_t end) const {
  const uint64_t length = length_bytes();
  return end > length && end <= align_up(length, kSectorSizeBytes) ? length
                                                                   : end;
}

absl::Status FileDriver::write(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(!read_only());
  const uint64_t offset = sector.byte_offset();
  const uint64_t end = offset + qiov.length_bytes();
  if (ABSL_PREDICT_FALSE(end > length_bytes()))
    return write_at_end(qiov, offset);
  return write_bytes(qiov, qiov.length_bytes(), offset);
}

absl::Status FileDriver::write_at_end(const IoVector& qiov, uint64_t offset) {
  const uint64_t end = clip_to_last_sector(offset + qiov.length_bytes());
  if (end < offset + qiov.length_bytes())
    return write_bytes(qiov, end - offset, offset);

  absl::ReaderMutexLock lock(&growth_mutex_);
  absl::Status status = write_bytes(qiov, end - offset, offset);
  if (status.ok()) {
    note_length_at_least(end);
  } else {
    relearn_length();  // a part of it may have been written
  }
  return status;
}

uint64_t FileDriver::try_write(const IoVector& qiov, Sector sector) {
  if (!file().on_tmpfs() || file().direct()) return 0;
  const uint64_t end = sector.byte_offset() + qiov.length_bytes();
  if (end > length_bytes()) return 0;  // would take a lock
  return write(qiov, sector).ok() ? qiov.length_bytes() : 0;
}

absl::Status FileDriver::allocate(int mode, ByteRange range, Support* support) {
  if (!support->possible())
    return absl::UnimplementedError("not supported by the file system");
  while (::fallocate(file().fd(), mode, static_cast<off_t>(range.offset),
                     static_cast<off_t>(range.length)) != 0) {
    if (errno == EINTR) continue;
    const int error_number = errno;
    if (!means_unsupported(error_number)) {
      return file().error_at(error_number, "fallocate", range.offset);
    }
    support->deny();
    return absl::UnimplementedError(absl::StrCat(
        "fallocate of '", filename(), "': not supported by the file system"));
  }
  return absl::OkStatus();
}

absl::Status FileDriver::discard(ByteRange range) {
  ABSL_ASSERT(!read_only());
  if (!file().passes_discard() || range.offset >= length_bytes())
    return absl::OkStatus();
  range.length = std::min(range.end(), length_bytes()) - range.offset;
  if (range.empty()) return absl::OkStatus();
  return allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range,
                  &punch_hole_);
}

absl::Status FileDriver::write_zeroes(ByteRange range, WriteZeroesFlags flags) {
  ABSL_ASSERT(!read_only());
  const uint64_t end = clip_to_last_sector(range.end());
  const uint64_t length = length_bytes();
  const uint64_t end_within = std::min(end, length);
  if (range.offset < end_within) {
    absl::Status status =
        zero_within({range.offset, end_within - range.offset},
                    flags.may_unmap && file().passes_discard());
    if (!status.ok()) return status;
  }
  // What a file gains by growing reads as zeroes.
  return end > length ? grow_to(end) : absl::OkStatus();
}

absl::Status FileDriver::zero_within(ByteRange range, bool may_unmap) {
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (may_unmap) {
    absl::Status status = allocate(kPunch, range, &punch_hole_);
    if (!absl::IsUnimplemented(status)) return status;
  }
  absl::Status status =
      allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, range, &zero_range_);
  if (!absl::IsUnimplemented(status) || may_unmap || !preallocate_.possible())
    return status;
  // tmpfs: take the space away and give it back.
  absl::Status punched = allocate(kPunch, range, &punch_hole_);
  if (!punched.ok()) return punched;
  return allocate(FALLOC_FL_KEEP_SIZE, range, &preallocate_);
}

absl::StatusOr<BlockStatus> FileDriver::block_status(ByteRange range,
                                                     BlockStatusScope) {
  ABSL_ASSERT(!range.empty());
  BlockStatus status = seek_status(file().fd(), range);
  status.end_of_image = range.offset + status.length >= length_bytes();
  return status;
}

absl::Status FileDriver::set_length(uint64_t length_bytes, SetLengthMode mode) {
  ABSL_ASSERT(!read_only());
  if (length_bytes > kLongestFile) return truncation_error(file(), EFBIG);
  if (mode == SetLengthMode::kGrowOnly) return grow_to(length_bytes);

  absl::MutexLock lock(&growth_mutex_);
  while (::ftruncate(file().fd(), static_cast<off_t>(length_bytes)) != 0) {
    if (errno != EINTR) return truncation_error(file(), errno);
  }
  set_known_length(length_bytes);
  return absl::OkStatus();
}

absl::Status FileDriver::resize(uint64_t length_bytes,
                                Preallocation preallocation) {
  const uint64_t old_length = this->length_bytes();
  if (preallocation == Preallocation::kOff || length_bytes == old_length)
    return set_length(length_bytes, SetLengthMode::kExact);
  if (preallocation == Preallocation::kMetadata)
    return absl::UnimplementedError("Unsupported preallocation mode: metadata");
  if (length_bytes < old_length) {
    return with_qemu_words(
        absl::InvalidArgumentError(
            "Preallocation can't be used for shrinking an image"),
        "Cannot use preallocation for shrinking files");
  }
  absl::Status status =
      grow_with_space({old_length, length_bytes - old_length}, preallocation);
  // The first error counts.
  if (!status.ok()) set_length(old_length, SetLengthMode::kExact).IgnoreError();
  return status;
}

absl::Status FileDriver::grow_with_space(ByteRange gained,
                                         Preallocation preallocation) {
  absl::Status status = set_length(gained.end(), SetLengthMode::kExact);
  if (!status.ok()) return status;
  if (preallocation == Preallocation::kFalloc) {
    // posix_fallocate() writes where the file system cannot reserve.
    const int error_number =
        ::posix_fallocate(file().fd(), static_cast<off_t>(gained.offset),
                          static_cast<off_t>(gained.length));
    return error_number == 0 ? status
                             : file().error(error_number, "posix_fallocate");
  }
  // What is less than a block at either end reads as zeroes as it is.
  const AlignedBuffer zeroes(kZeroBufferBytes, kBlockBytes);
  std::memset(zeroes.data(), 0, kZeroBufferBytes);
  const uint64_t end = align_down(gained.end(), kBlockBytes);
  for (uint64_t at = align_up(gained.offset, kBlockBytes); at < end;) {
    const uint64_t bytes = std::min<uint64_t>(kZeroBufferBytes, end - at);
    status = write_bytes(IoVector(zeroes.data(), bytes), bytes, at);
    if (!status.ok()) return status;
    at += bytes;
  }
  return flush();
}

absl::Status FileDriver::grow_to(uint64_t length_bytes) {
  if (length_bytes <= this->length_bytes()) return absl::OkStatus();
  // Allocating the last byte makes the file that long or leaves it longer; it
  // never cuts off what a write adds meanwhile, as ftruncate would.
  absl::Status status;
  {
    absl::ReaderMutexLock lock(&growth_mutex_);
    status = allocate(0, {length_bytes - 1, 1}, &preallocate_);
    if (status.ok()) note_length_at_least(length_bytes);
  }
  return absl::IsUnimplemented(status) ? grow_by_truncate(length_bytes)
                                       : status;
}

absl::Status FileDriver::grow_by_truncate(uint64_t length_bytes) {
  absl::MutexLock lock(&growth_mutex_);
  const absl::StatusOr<uint64_t> measured = file().measure_length();
  if (!measured.ok()) return measured.status();
  note_length_at_least(*measured);
  if (*measured >= length_bytes) return absl::OkStatus();
  while (::ftruncate(file().fd(), static_cast<off_t>(length_bytes)) != 0) {
    if (errno != EINTR) return file().error(errno, "ftruncate");
  }
  note_length_at_least(length_bytes);
  return absl::OkStatus();
}

}  // namespace spindle

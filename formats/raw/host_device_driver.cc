#include "formats/raw/host_device_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <utility>

#include "absl/base/macros.h"
#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

int ioctl_on_range(int fd, unsigned long request, ByteRange range) {
  uint64_t start_and_length[2] = {range.offset, range.length};
  while (::ioctl(fd, request, start_and_length) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

// The whole blocks within `range`.
ByteRange shrink_to_blocks(ByteRange range, uint32_t block_bytes) {
  const uint64_t start = align_up(range.offset, block_bytes);
  const uint64_t end = align_down(range.end(), block_bytes);
  return {start, end > start ? end - start : 0};
}

bool means_unsupported(int error_number) {
  return error_number == EOPNOTSUPP || error_number == ENOTTY ||
         error_number == ENOSYS;
}

}  // namespace

absl::StatusOr<std::shared_ptr<HostDeviceDriver>> HostDeviceDriver::open(
    const std::string& filename, const OpenOptions& options) {
  absl::StatusOr<std::unique_ptr<PosixFile>> file =
      PosixFile::open(filename, PosixFileKind::kBlockDevice, options);
  if (!file.ok()) return file.status();
  const absl::StatusOr<uint64_t> length_bytes = (*file)->measure_length();
  if (!length_bytes.ok()) return length_bytes.status();
  int logical_block_bytes = 0;
  if (::ioctl((*file)->fd(), BLKSSZGET, &logical_block_bytes) != 0) {
    return (*file)->error(errno, "BLKSSZGET");
  }
  const uint32_t block_bytes = std::max<uint32_t>(
      kSectorSizeBytes,
      static_cast<uint32_t>(std::max(logical_block_bytes, 0)));
  return absl::WrapUnique(
      new HostDeviceDriver(*std::move(file), *length_bytes, block_bytes));
}

HostDeviceDriver::HostDeviceDriver(std::unique_ptr<PosixFile> file,
                                   uint64_t length_bytes,
                                   uint32_t logical_block_bytes)
    : PosixDriver(std::move(file), length_bytes),
      logical_block_bytes_(logical_block_bytes) {}

DriverLimits HostDeviceDriver::limits() const {
  DriverLimits limits = PosixDriver::limits();
  limits.writes_take_turns = false;
  limits.discard_alignment_bytes = logical_block_bytes_;
  limits.write_zeroes_alignment_bytes = logical_block_bytes_;
  return limits;
}

Capabilities HostDeviceDriver::capabilities() const {
  Capabilities capabilities = {Capability::kDiscard,
                               Capability::kWriteZeroes,
                               Capability::kWriteZeroesMayUnmap,
                               Capability::kWriteZeroesNoFallback,
                               Capability::kBlockStatus,
                               Capability::kSetLength,
                               Capability::kReopen,
                               Capability::kInactivate};
  if (can_try_read()) capabilities.add(Capability::kTryRead);
  return capabilities;
}

absl::Status HostDeviceDriver::read_beyond_end(const IoVector&, uint64_t offset,
                                               uint64_t done) {
  // Within the length that callers know: the device has shrunk under us.
  return file().error_at(EIO, "preadv", offset + done);
}

absl::Status HostDeviceDriver::write(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(!read_only());
  const uint64_t offset = sector.byte_offset();
  return write_bytes(qiov, qiov.length_bytes(), offset);
}

absl::Status HostDeviceDriver::discard(ByteRange range) {
  ABSL_ASSERT(!read_only());
  if (!file().passes_discard()) return absl::OkStatus();
  const ByteRange blocks = shrink_to_blocks(range, logical_block_bytes_);
  if (blocks.empty()) return absl::OkStatus();
  if (can_discard_.load(std::memory_order_relaxed)) {
    const int error_number = ioctl_on_range(file().fd(), BLKDISCARD, blocks);
    if (error_number == 0) return absl::OkStatus();
    if (!means_unsupported(error_number)) {
      return file().error_at(error_number, "BLKDISCARD", blocks.offset);
    }
    can_discard_.store(false, std::memory_order_relaxed);
  }
  return absl::UnimplementedError(
      absl::StrCat("'", filename(), "' does not support discard"));
}

absl::Status HostDeviceDriver::write_zeroes(ByteRange range,
                                            WriteZeroesFlags flags) {
  ABSL_ASSERT(!read_only());
  if (range.empty()) return absl::OkStatus();
  if (range.end() > length_bytes())
    return file().error_at(ENOSPC, "BLKZEROOUT", range.offset);
  if (shrink_to_blocks(range, logical_block_bytes_) != range) {
    return absl::UnimplementedError(
        "the range does not consist of whole blocks");
  }
  if (flags.may_unmap && file().passes_discard()) {
    const absl::Status status = zero_by_unmapping(range);
    if (!absl::IsUnimplemented(status)) return status;
  }
  // BLKZEROOUT writes zeroes one by one where the device has nothing better,
  // and does not tell.
  if (flags.no_fallback)
    return absl::UnimplementedError("may have to write the zeroes");
  return zero_by_ioctl(range);
}

absl::Status HostDeviceDriver::zero_by_ioctl(ByteRange range) {
  const int error_number = ioctl_on_range(file().fd(), BLKZEROOUT, range);
  if (error_number == 0) return absl::OkStatus();
  if (means_unsupported(error_number)) {
    return absl::UnimplementedError(
        absl::StrCat("'", filename(), "' does not support BLKZEROOUT"));
  }
  return file().error_at(error_number, "BLKZEROOUT", range.offset);
}

// Punching a hole into a device unmaps and zeroes it, or does nothing at all:
// BLKDISCARD would not promise zeroes.
absl::Status HostDeviceDriver::zero_by_unmapping(ByteRange range) {
  if (can_unmap_zeroes_.load(std::memory_order_relaxed)) {
    int result;
    do {
      result = ::fallocate(
          file().fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
          static_cast<off_t>(range.offset), static_cast<off_t>(range.length));
    } while (result != 0 && errno == EINTR);
    if (result == 0) return absl::OkStatus();
    if (!means_unsupported(errno))
      return file().error_at(errno, "fallocate", range.offset);
    can_unmap_zeroes_.store(false, std::memory_order_relaxed);
  }
  return absl::UnimplementedError(
      absl::StrCat("'", filename(), "' cannot unmap to zeroes"));
}

absl::StatusOr<BlockStatus> HostDeviceDriver::block_status(ByteRange range,
                                                           BlockStatusScope) {
  ABSL_ASSERT(!range.empty());
  BlockStatus status;
  status.length = range.length;
  status.allocated = true;
  status.data = true;
  status.host_offset = range.offset;
  status.end_of_image = range.end() >= length_bytes();
  return status;
}

absl::Status HostDeviceDriver::set_length(uint64_t length_bytes,
                                          SetLengthMode mode) {
  const absl::StatusOr<uint64_t> measured = file().measure_length();
  if (!measured.ok()) return measured.status();
  set_known_length(*measured);
  if (length_bytes > *measured) {
    return file().error(ENOSPC,
                        absl::StrCat("growth to ", length_bytes, " bytes"));
  }
  if (length_bytes == *measured || mode == SetLengthMode::kGrowOnly)
    return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "'", filename(), "' is a block device and cannot be made shorter"));
}

}  // namespace spindle

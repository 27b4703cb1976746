#include "formats/raw/posix_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/raw/direct_io.h"

namespace spindle {
namespace {

absl::string_view kind_of_file(unsigned mode) {
  if (S_ISREG(mode)) return "a regular file";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISSOCK(mode)) return "a socket";
  return "a special file";
}

// Block devices are the same through every node that names them.
StorageIdentity identity_of(const struct stat& facts) {
  if (S_ISBLK(facts.st_mode)) return {facts.st_rdev, 0};
  return {facts.st_dev, facts.st_ino};
}

int open_retrying(const std::string& filename, int flags) {
  int fd;
  do {
    fd = ::open(filename.c_str(), flags);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

int dup3_retrying(int from, int to) {
  int result;
  do {
    result = ::dup3(from, to, O_CLOEXEC);
  } while (result < 0 && (errno == EINTR || errno == EBUSY));
  return result;
}

absl::Status open_error(int error_number, int flags,
                        const std::string& filename) {
  if (error_number == EINVAL && (flags & O_DIRECT) != 0) {
    return errno_status(
        error_number,
        absl::StrCat("'", filename,
                     "' cannot be opened without the page cache (does its file "
                     "system support O_DIRECT?)"));
  }
  return errno_status(error_number,
                      absl::StrCat("Could not open '", filename, "'"));
}

}  // namespace

PosixFile::PosixFile(const std::string& filename, PosixFileKind kind,
                     const OpenOptions& options)
    : filename_(filename),
      kind_(kind),
      options_(options),
      direct_(options.direct),
      read_only_(options.read_only),
      no_flush_(options.no_flush) {}

absl::StatusOr<std::unique_ptr<PosixFile>> PosixFile::open(
    const std::string& filename, PosixFileKind kind,
    const OpenOptions& options) {
  if (options.force_share && !options.read_only) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", filename, "': force_share needs read_only"));
  }
  std::unique_ptr<PosixFile> file =
      absl::WrapUnique(new PosixFile(filename, kind, options));
  absl::Status status = file->open_first();
  if (status.ok()) status = file->learn_facts();
  if (status.ok()) status = file->take_locks();
  if (!status.ok()) return status;
  return file;
}

absl::Status PosixFile::check_kind(unsigned mode) const {
  const bool is_regular = kind_ == PosixFileKind::kRegular;
  if (is_regular ? S_ISREG(mode) : S_ISBLK(mode)) return absl::OkStatus();
  return with_qemu_words(
      absl::InvalidArgumentError(
          absl::StrCat("'", filename_, "' is ", kind_of_file(mode), ", not ",
                       is_regular ? "a regular file (protocol 'file')"
                                  : "a block device (protocol "
                                    "'host_device')")),
      is_regular ? absl::StrCat("'file' driver requires '", filename_,
                                "' to be a regular file")
                 : absl::StrCat("'host_device' driver requires '", filename_,
                                "' to be either a character or block device"));
}

int PosixFile::open_flags(bool read_only, bool direct) {
  return (read_only ? O_RDONLY : O_RDWR) | (direct ? O_DIRECT : 0) | O_CLOEXEC |
         O_NOCTTY;
}

absl::Status PosixFile::open_first() {
  // Looked at before it is opened, because opening some files has effects; and
  // afterwards, because the name may have changed hands.
  struct stat facts = {};
  if (::stat(filename_.c_str(), &facts) != 0)
    return open_error(errno, 0, filename_);
  absl::Status status = check_kind(facts.st_mode);
  if (!status.ok()) return status;

  const int flags = open_flags(options_.read_only, direct_);
  fd_ = OwnedFd(
      open_retrying(filename_, flags | O_NONBLOCK));  // would hang on a FIFO
  if (!fd_.valid()) return open_error(errno, flags, filename_);
  fd_number_ = fd_.get();
  if (::fstat(fd_number_, &facts) != 0) return error(errno, "fstat");
  status = check_kind(facts.st_mode);
  if (!status.ok()) return status;
  if (::fcntl(fd_number_, F_SETFL, flags & (O_DIRECT | O_ACCMODE)) != 0) {
    return error(errno, "fcntl");
  }
  identity_ = identity_of(facts);
  return absl::OkStatus();
}

absl::Status PosixFile::learn_facts() {
  buffered_fd_number_ = fd_number_;
  struct statfs file_system = {};
  on_tmpfs_ = kind_ == PosixFileKind::kRegular &&
              ::fstatfs(fd_number_, &file_system) == 0 &&
              file_system.f_type == TMPFS_MAGIC;
  if (!direct_) return absl::OkStatus();

  const absl::StatusOr<uint32_t> alignment =
      find_direct_io_alignment(fd_number_, filename_);
  if (!alignment.ok()) return alignment.status();
  unit_bytes_ = *alignment;
  absl::StatusOr<OwnedFd> twin =
      open_again(open_flags(options_.read_only, /*direct=*/false));
  if (!twin.ok()) return twin.status();
  buffered_fd_ = *std::move(twin);
  buffered_fd_number_ = buffered_fd_.get();
  return absl::OkStatus();
}

absl::StatusOr<OwnedFd> PosixFile::open_again(int flags) const {
  // Through /proc it is the same file even if it was renamed or removed.
  OwnedFd fd(open_retrying(absl::StrCat("/proc/self/fd/", fd_number_), flags));
  if (!fd.valid() && errno == ENOENT)
    fd = OwnedFd(open_retrying(filename_, flags | O_NONBLOCK));
  if (!fd.valid()) return open_error(errno, flags, filename_);
  struct stat facts = {};
  if (::fstat(fd.get(), &facts) != 0) return error(errno, "fstat");
  if (!(identity_of(facts) == identity_)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "'", filename_, "' is no longer the file that was opened"));
  }
  if (::fcntl(fd.get(), F_SETFL, flags & (O_DIRECT | O_ACCMODE)) != 0)
    return error(errno, "fcntl");
  return fd;
}

FileUse PosixFile::use_for(bool read_only) const {
  if (!options_.lock) return kNoUse;
  if (!read_only) return kWriterUse;
  return options_.force_share ? kForcedReaderUse : kReaderUse;
}

absl::Status PosixFile::take_locks() {
  absl::MutexLock lock(&mutex_);
  const FileUse use = use_for(read_only());
  const absl::Status status =
      change_file_locks(fd_number_, use_, use, filename_);
  if (status.ok()) use_ = use;
  return status;
}

absl::Status PosixFile::release_locks() {
  absl::MutexLock lock(&mutex_);
  const absl::Status status =
      change_file_locks(fd_number_, use_, kNoUse, filename_);
  if (status.ok()) use_ = kNoUse;
  return status;
}

absl::Status PosixFile::flush() {
  if (no_flush_.load(std::memory_order_relaxed)) return absl::OkStatus();
  const int error_number = sync_rounds_.sync(fd_number_);
  if (error_number != 0) return error(error_number, "fdatasync");
  return absl::OkStatus();
}

absl::StatusOr<PosixFile::Successor> PosixFile::open_successor(
    bool read_only, bool direct) const {
  Successor successor;
  absl::StatusOr<OwnedFd> fd = open_again(open_flags(read_only, direct));
  if (!fd.ok()) return fd.status();
  successor.fd = *std::move(fd);
  if (!direct) return successor;
  const absl::StatusOr<uint32_t> alignment =
      find_direct_io_alignment(successor.fd.get(), filename_);
  if (!alignment.ok()) return alignment.status();
  successor.unit_bytes = *alignment;
  absl::StatusOr<OwnedFd> twin = open_again(open_flags(read_only, false));
  if (!twin.ok()) return twin.status();
  successor.twin = *std::move(twin);
  return successor;
}

absl::Status PosixFile::put_in_place(Successor successor, bool direct) {
  if (direct && direct_ &&
      dup3_retrying(successor.twin.get(), buffered_fd_number_) < 0)
    return error(errno, "dup3");
  if (dup3_retrying(successor.fd.get(), fd_number_) < 0)
    return error(errno, "dup3");
  if (direct == direct_) return absl::OkStatus();
  // Nobody else looks at these now.
  direct_ = direct;
  unit_bytes_ = successor.unit_bytes;
  buffered_fd_ = std::move(successor.twin);
  buffered_fd_number_ = direct ? buffered_fd_.get() : fd_number_;
  return absl::OkStatus();
}

absl::Status PosixFile::reopen(const ReopenOptions& options) {
  const bool read_only = options.read_only;
  const bool direct = options.direct.value_or(direct_);
  if (options_.force_share && !read_only) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", filename_, "' was opened with force_share and stays read-only"));
  }
  // A read-only file is not flushed when it is closed.
  if (read_only && !this->read_only()) {
    const absl::Status status = flush();
    if (!status.ok()) return status;
  }
  absl::MutexLock lock(&mutex_);
  absl::StatusOr<Successor> successor = open_successor(read_only, direct);
  if (!successor.ok()) return successor.status();
  // Asked through the old descriptor, whose own locks are no conflict; the new
  // one then takes the same locks, which are all shared.
  const FileUse use = use_for(read_only);
  absl::Status status = change_file_locks(fd_number_, use_, use, filename_);
  if (status.ok()) status = set_file_locks(successor->fd.get(), use, filename_);
  if (status.ok()) status = put_in_place(*std::move(successor), direct);
  if (!status.ok()) {
    set_file_locks(fd_number_, use_, filename_)
        .IgnoreError();  // the first error counts
    return status;
  }
  use_ = use;
  read_only_.store(read_only, std::memory_order_release);
  if (options.no_flush.has_value())
    no_flush_.store(*options.no_flush, std::memory_order_relaxed);
  sync_rounds_.forget_failure();
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PosixFile::measure_length() const {
  if (kind_ == PosixFileKind::kBlockDevice) {
    uint64_t length_bytes = 0;
    if (::ioctl(fd_number_, BLKGETSIZE64, &length_bytes) != 0)
      return error(errno, "BLKGETSIZE64");
    return length_bytes;
  }
  struct stat facts = {};
  if (::fstat(fd_number_, &facts) != 0) return error(errno, "fstat");
  return static_cast<uint64_t>(facts.st_size);
}

absl::Status PosixFile::error(int error_number, absl::string_view call) const {
  return errno_status(error_number,
                      absl::StrCat(call, " of '", filename_, "'"));
}

absl::Status PosixFile::error_at(int error_number, absl::string_view call,
                                 uint64_t offset) const {
  return errno_status(error_number, absl::StrCat(call, " of '", filename_,
                                                 "' at offset ", offset));
}

}  // namespace spindle

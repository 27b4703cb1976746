#include "formats/raw/file_locks.h"

#include <errno.h>
#include <fcntl.h>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {
namespace {

constexpr off_t kUsedBase = 100;
constexpr off_t kDeniedBase = 200;

constexpr absl::string_view kPermissionNames[kFilePermissionCount] = {
    "consistent read", "write", "write unchanged", "resize"};

struct flock one_byte(short type, off_t byte) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return lock;  // l_pid must be 0 for these locks
}

absl::Status set_byte(int fd, off_t byte, bool locked,
                      absl::string_view filename) {
  struct flock lock = one_byte(locked ? F_RDLCK : F_UNLCK, byte);
  while (::fcntl(fd, F_OFD_SETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    return errno_status(
        errno, absl::StrCat("Failed to ", locked ? "lock" : "unlock", " byte ",
                            byte, " of '", filename, "'"));
  }
  return absl::OkStatus();
}

absl::Status check_byte(int fd, off_t byte, absl::string_view shared,
                        absl::string_view permission,
                        absl::string_view filename) {
  struct flock lock = one_byte(F_WRLCK, byte);
  while (::fcntl(fd, F_OFD_GETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    return errno_status(
        errno, absl::StrCat("Failed to examine the lock on byte ", byte,
                            " of '", filename, "'"));
  }
  if (lock.l_type == F_UNLCK) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "Failed to get ", shared, "\"", permission,
      "\" lock\nIs another process using the image [", filename, "]?"));
}

FilePermission permission_at(int index) {
  return static_cast<FilePermission>(index);
}

}  // namespace

absl::Status set_file_locks(int fd, const FileUse& use,
                            absl::string_view filename) {
  for (int i = 0; i < kFilePermissionCount; ++i) {
    absl::Status status =
        set_byte(fd, kUsedBase + i, use.used.has(permission_at(i)), filename);
    if (!status.ok()) return status;
  }
  for (int i = 0; i < kFilePermissionCount; ++i) {
    absl::Status status = set_byte(fd, kDeniedBase + i,
                                   use.denied.has(permission_at(i)), filename);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status check_file_locks(int fd, const FileUse& use,
                              absl::string_view filename) {
  for (int i = 0; i < kFilePermissionCount; ++i) {
    const FilePermission permission = permission_at(i);
    absl::Status status;
    if (use.used.has(permission)) {
      status =
          check_byte(fd, kDeniedBase + i, "", kPermissionNames[i], filename);
    }
    if (status.ok() && use.denied.has(permission)) {
      status = check_byte(fd, kUsedBase + i, "shared ", kPermissionNames[i],
                          filename);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status change_file_locks(int fd, const FileUse& from, const FileUse& to,
                               absl::string_view filename) {
  if (from == to) return absl::OkStatus();
  const FileUse both{from.used | to.used, from.denied | to.denied};
  absl::Status status = set_file_locks(fd, both, filename);
  if (status.ok()) status = check_file_locks(fd, to, filename);
  if (!status.ok()) {
    set_file_locks(fd, from, filename)
        .IgnoreError();  // only unlocks: the first error counts
    return status;
  }
  return set_file_locks(fd, to, filename);
}

}  // namespace spindle

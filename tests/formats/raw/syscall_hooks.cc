#include "tests/formats/raw/syscall_hooks.h"

#include <sys/stat.h>

#include <atomic>

// The names are the linker's: --wrap=X sends calls of X to __wrap_X.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" {
ssize_t __real_pread(int fd, void* to, size_t length, off_t offset);
ssize_t __real_preadv(int fd, const iovec* segments, int count, off_t offset);
ssize_t __real_preadv2(int fd, const iovec* segments, int count, off_t offset,
                       int flags);
ssize_t __real_pwrite(int fd, const void* from, size_t length, off_t offset);
ssize_t __real_pwritev(int fd, const iovec* segments, int count, off_t offset);
int __real_fdatasync(int fd);
int __real_ftruncate(int fd, off_t length);
int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __real_statx(int fd, const char* path, int flags, unsigned mask,
                 struct statx* out);
}

namespace spindle::testing {
namespace {

std::atomic<const SyscallHooks*> current_hooks{nullptr};

const SyscallHooks& hooks() {
  static const SyscallHooks none;
  const SyscallHooks* const current =
      current_hooks.load(std::memory_order_acquire);
  return current != nullptr ? *current : none;
}

}  // namespace

ScopedSyscallHooks::ScopedSyscallHooks(const SyscallHooks* hooks) {
  current_hooks.store(hooks, std::memory_order_release);
}
ScopedSyscallHooks::~ScopedSyscallHooks() {
  current_hooks.store(nullptr, std::memory_order_release);
}

ssize_t real_preadv(int fd, const iovec* segments, int count, off_t offset) {
  return __real_preadv(fd, segments, count, offset);
}
ssize_t real_pwritev(int fd, const iovec* segments, int count, off_t offset) {
  return __real_pwritev(fd, segments, count, offset);
}
int real_fdatasync(int fd) { return __real_fdatasync(fd); }
int real_fallocate(int fd, int mode, off_t offset, off_t length) {
  return __real_fallocate(fd, mode, offset, length);
}

int real_ftruncate(int fd, off_t length) {
  return __real_ftruncate(fd, length);
}

}  // namespace spindle::testing

extern "C" {

using spindle::testing::hooks;

ssize_t __wrap_pread(int fd, void* to, size_t length, off_t offset) {
  if (!hooks().read) return __real_pread(fd, to, length, offset);
  const iovec segment{to, length};
  return hooks().read(fd, &segment, 1, offset);
}

ssize_t __wrap_preadv(int fd, const iovec* segments, int count, off_t offset) {
  if (!hooks().read) return __real_preadv(fd, segments, count, offset);
  return hooks().read(fd, segments, count, offset);
}

ssize_t __wrap_preadv2(int fd, const iovec* segments, int count, off_t offset,
                       int flags) {
  if (!hooks().read_without_wait) {
    return __real_preadv2(fd, segments, count, offset, flags);
  }
  return hooks().read_without_wait(fd, segments, count, offset);
}

ssize_t __wrap_pwrite(int fd, const void* from, size_t length, off_t offset) {
  if (!hooks().write) return __real_pwrite(fd, from, length, offset);
  const iovec segment{const_cast<void*>(from), length};
  return hooks().write(fd, &segment, 1, offset);
}

ssize_t __wrap_pwritev(int fd, const iovec* segments, int count, off_t offset) {
  if (!hooks().write) return __real_pwritev(fd, segments, count, offset);
  return hooks().write(fd, segments, count, offset);
}

int __wrap_fdatasync(int fd) {
  return hooks().fdatasync ? hooks().fdatasync(fd) : __real_fdatasync(fd);
}

int __wrap_fallocate(int fd, int mode, off_t offset, off_t length) {
  if (!hooks().fallocate) return __real_fallocate(fd, mode, offset, length);
  return hooks().fallocate(fd, mode, offset, length);
}

int __wrap_ftruncate(int fd, off_t length) {
  return hooks().ftruncate ? hooks().ftruncate(fd, length)
                           : __real_ftruncate(fd, length);
}

int __wrap_statx(int fd, const char* path, int flags, unsigned mask,
                 struct statx* out) {
  if (!hooks().statx) return __real_statx(fd, path, flags, mask, out);
  return hooks().statx();
}
}
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

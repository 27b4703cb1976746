// System calls that fail, stop short or are missing, for tests.
//
// A test that depends on this target is linked with --wrap for the calls named
// here: while a SyscallHooks lives, its functions stand in their place.  The
// code under test knows nothing of it.
//
// Thread safety: hooks are called from any thread; install and remove them
// while no call is in progress.
#ifndef SPINDLE_TESTS_FORMATS_RAW_SYSCALL_HOOKS_H_
#define SPINDLE_TESTS_FORMATS_RAW_SYSCALL_HOOKS_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <functional>

namespace spindle::testing {

// Each returns what the system call returns, and sets errno.  An empty one
// stands for the real call.
struct SyscallHooks {
  using Transfer =
      std::function<ssize_t(int fd, const iovec*, int count, off_t)>;

  Transfer read;               // pread and preadv
  Transfer write;              // pwrite and pwritev
  Transfer read_without_wait;  // preadv2
  std::function<int(int fd)> fdatasync;
  std::function<int(int fd, int mode, off_t, off_t)> fallocate;
  std::function<int(int fd, off_t length)> ftruncate;
  std::function<int()> statx;
};

class ScopedSyscallHooks {
 public:
  // `hooks` must outlive this object.
  explicit ScopedSyscallHooks(const SyscallHooks* hooks);
  ~ScopedSyscallHooks();
  ScopedSyscallHooks(const ScopedSyscallHooks&) = delete;
  ScopedSyscallHooks& operator=(const ScopedSyscallHooks&) = delete;
};

// The real calls, for hooks that only change something about them.
ssize_t real_preadv(int fd, const iovec* segments, int count, off_t offset);
ssize_t real_pwritev(int fd, const iovec* segments, int count, off_t offset);
int real_fdatasync(int fd);
int real_fallocate(int fd, int mode, off_t offset, off_t length);
int real_ftruncate(int fd, off_t length);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_RAW_SYSCALL_HOOKS_H_

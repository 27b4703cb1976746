// pool_check(): ends the process when our own code, or the code that uses an
// executor, has broken a contract that would otherwise corrupt memory.  It
// holds in release builds too, and is never applied to anything but programs'
// mistakes.
//
// Thread safety: a free function without state.
#ifndef SPINDLE_THREADPOOL_POOL_CHECK_H_
#define SPINDLE_THREADPOOL_POOL_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace spindle {

[[noreturn]] inline void pool_fail(const char* message) {
  std::fprintf(stderr, "spindle: %s\n", message);
  std::abort();
}

inline void pool_check(bool holds, const char* message) {
  if (!holds) [[unlikely]] {
    pool_fail(message);
  }
}

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_POOL_CHECK_H_

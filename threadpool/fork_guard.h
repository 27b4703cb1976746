// ForkGuard: remembers the process in which it was made.
//
// A fork() copies the memory of a pool but none of its threads, and whatever
// lock another thread held stays locked for ever.  A pool therefore asks its
// guard before it touches anything else.
//
// Thread safety: any thread may ask at any time; asking costs one load.
#ifndef SPINDLE_THREADPOOL_FORK_GUARD_H_
#define SPINDLE_THREADPOOL_FORK_GUARD_H_

#include <cstdint>

namespace spindle {

class ForkGuard {
 public:
  ForkGuard();

  // True in a process that was forked off after this guard was made.
  bool crossed_fork() const;

 private:
  const uint64_t generation_;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_FORK_GUARD_H_

// Parker: lets one thread sleep until another wakes it.
//
// A wake-up that comes first is kept, once, so the order of park() and
// unpark() does not matter.  A sleeping thread costs nothing; waking a thread
// that does not sleep costs no system call.
//
// Thread safety: one thread parks; any thread may unpark.
#ifndef SPINDLE_THREADPOOL_PARKER_H_
#define SPINDLE_THREADPOOL_PARKER_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace spindle {

class Parker {
 public:
  Parker() = default;
  Parker(const Parker&) = delete;
  Parker& operator=(const Parker&) = delete;

  // Sleeps until unpark(), or returns at once if that came already.
  void park();

  // The same, for at most `timeout`; false if nobody called unpark().
  bool park_for(absl::Duration timeout);

  void unpark();

 private:
  enum State : uint32_t { kEmpty, kWoken, kAsleep };

  // A futex.  The exchange in unpark() releases what the exchange in the
  // parking thread acquires.
  std::atomic<uint32_t> state_ = kEmpty;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_PARKER_H_

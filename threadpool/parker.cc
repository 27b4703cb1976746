#include "threadpool/parker.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace spindle {
namespace {

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

void futex_wait(std::atomic<uint32_t>& word, uint32_t expected,
                const timespec* timeout) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, timeout, nullptr, 0);
}

void futex_wake_one(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

}  // namespace

void Parker::park() {
  uint32_t expected = kEmpty;
  if (state_.compare_exchange_strong(expected, kAsleep,
                                     std::memory_order_acquire)) {
    while (state_.load(std::memory_order_acquire) == kAsleep) {
      futex_wait(state_, kAsleep, nullptr);
    }
  }
  state_.exchange(kEmpty, std::memory_order_acquire);
}

bool Parker::park_for(absl::Duration timeout) {
  uint32_t expected = kEmpty;
  if (state_.compare_exchange_strong(expected, kAsleep,
                                     std::memory_order_acquire)) {
    // One wait, however it ends: the caller looks around and comes back.
    const timespec relative = absl::ToTimespec(timeout);
    futex_wait(state_, kAsleep, &relative);
  }
  return state_.exchange(kEmpty, std::memory_order_acquire) == kWoken;
}

void Parker::unpark() {
  if (state_.exchange(kWoken, std::memory_order_release) == kAsleep)
    futex_wake_one(state_);
}

}  // namespace spindle

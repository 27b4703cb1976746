#include "threadpool/fork_guard.h"

#include <pthread.h>

#include <atomic>

namespace spindle {
namespace {

// How many forks lie between the first guard of this process's line and now.
std::atomic<uint64_t> fork_generation{0};

void count_fork() { fork_generation.fetch_add(1, std::memory_order_relaxed); }

uint64_t watched_generation() {
  static const int registered = pthread_atfork(nullptr, nullptr, &count_fork);
  static_cast<void>(registered);
  return fork_generation.load(std::memory_order_relaxed);
}

}  // namespace

ForkGuard::ForkGuard() : generation_(watched_generation()) {}

bool ForkGuard::crossed_fork() const {
  return fork_generation.load(std::memory_order_relaxed) != generation_;
}

}  // namespace spindle

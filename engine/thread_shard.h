// thread_shard(): a number for the calling thread, the same for its whole life,
// by which it chooses its shard of a sharded counter.
//
// Thread safety: any thread.
#ifndef SPINDLE_ENGINE_THREAD_SHARD_H_
#define SPINDLE_ENGINE_THREAD_SHARD_H_

#include <atomic>
#include <cstddef>

namespace spindle {

inline size_t thread_shard() {
  static constinit std::atomic<size_t> next{1};
  // Zero-initialised, so that reading it costs no guard.
  static thread_local constinit size_t number = 0;
  if (number == 0) number = next.fetch_add(1, std::memory_order_relaxed);
  return number;
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_THREAD_SHARD_H_

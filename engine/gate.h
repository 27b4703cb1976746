// Gate: every data request passes it; an operation that must have the image to
// itself closes it, waits for the requests inside, changes what it must, and
// opens it again.
//
// Passing costs one atomic increment on a counter that few threads share; no
// mutex.  A request that waits at a closed gate holds nothing.
//
// Thread safety: every method, from any thread.  A thread inside the gate must
// not enter it again (a closer might stand between) and must not close it.
#ifndef SPINDLE_ENGINE_GATE_H_
#define SPINDLE_ENGINE_GATE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

class Gate {
 public:
  Gate() = default;
  // REQUIRES: nobody is inside.
  ~Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // The right to be inside; given back by the destructor.
  class Passage {
   public:
    // Waits while the gate is closed.
    explicit Passage(Gate* gate) : gate_(gate), shard_(gate->enter()) {}
    ~Passage() { gate_->leave(shard_); }
    Passage(const Passage&) = delete;
    Passage& operator=(const Passage&) = delete;

   private:
    Gate* const gate_;
    const size_t shard_;
  };

  // Like Passage, but does not wait: entered() tells.
  class TryPassage {
   public:
    explicit TryPassage(Gate* gate);
    ~TryPassage();
    TryPassage(const TryPassage&) = delete;
    TryPassage& operator=(const TryPassage&) = delete;
    bool entered() const { return entered_; }

   private:
    Gate* const gate_;
    size_t shard_ = 0;
    bool entered_ = false;
  };

  // How often it has been closed: who was outside for a while sees whether
  // somebody had the image to himself meanwhile.
  uint64_t times_closed() const {
    return times_closed_.load(std::memory_order_acquire);
  }

  // The gate closed, with nobody inside, until the destructor opens it.
  // Closers wait for each other.
  class Closure {
   public:
    explicit Closure(Gate* gate) : gate_(gate) { gate_->close(); }
    ~Closure() { gate_->open(); }
    Closure(const Closure&) = delete;
    Closure& operator=(const Closure&) = delete;

   private:
    Gate* const gate_;
  };

 private:
  static constexpr size_t kShards = 16;
  struct alignas(64) Shard {
    std::atomic<int64_t> inside{0};
  };

  static size_t shard_of_this_thread();
  // Returns the shard that was entered.
  size_t enter();
  bool try_enter(size_t shard);
  void leave(size_t shard);
  void close();
  void open();
  bool nobody_inside() const;

  std::array<Shard, kShards> shards_;
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> times_closed_{0};

  // Taken only while the gate is closed or being closed.
  absl::Mutex mutex_;
  bool closer_present_ ABSL_GUARDED_BY(mutex_) = false;
  absl::CondVar changed_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_GATE_H_

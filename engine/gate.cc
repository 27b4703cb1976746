#include "engine/gate.h"

#include "engine/thread_shard.h"

namespace spindle {

// Entering and closing follow one pattern: each side first writes its own flag
// (the shard's counter; closed_) and then reads the other's.  All four accesses
// are sequentially consistent, so at least one side sees the other.  Leaving
// and waiting for the last to leave pair up in the same way.

size_t Gate::shard_of_this_thread() { return thread_shard() % kShards; }

size_t Gate::enter() {
  const size_t shard = shard_of_this_thread();
  while (!try_enter(shard)) {
    absl::MutexLock lock(&mutex_);
    while (closed_.load(std::memory_order_relaxed)) changed_.Wait(&mutex_);
  }
  return shard;
}

bool Gate::try_enter(size_t shard) {
  shards_[shard].inside.fetch_add(1, std::memory_order_seq_cst);
  if (!closed_.load(std::memory_order_seq_cst)) return true;
  leave(shard);
  return false;
}

void Gate::leave(size_t shard) {
  shards_[shard].inside.fetch_sub(1, std::memory_order_seq_cst);
  if (!closed_.load(std::memory_order_seq_cst)) return;
  absl::MutexLock lock(&mutex_);
  changed_.SignalAll();
}

void Gate::close() {
  absl::MutexLock lock(&mutex_);
  while (closer_present_) changed_.Wait(&mutex_);
  closer_present_ = true;
  times_closed_.fetch_add(1, std::memory_order_release);
  closed_.store(true, std::memory_order_seq_cst);
  while (!nobody_inside()) changed_.Wait(&mutex_);
}

void Gate::open() {
  absl::MutexLock lock(&mutex_);
  closer_present_ = false;
  closed_.store(false, std::memory_order_seq_cst);
  changed_.SignalAll();
}

bool Gate::nobody_inside() const {
  for (const Shard& shard : shards_) {
    if (shard.inside.load(std::memory_order_seq_cst) != 0) return false;
  }
  return true;
}

Gate::TryPassage::TryPassage(Gate* gate)
    : gate_(gate),
      shard_(shard_of_this_thread()),
      entered_(gate->try_enter(shard_)) {}

Gate::TryPassage::~TryPassage() {
  if (entered_) gate_->leave(shard_);
}

}  // namespace spindle

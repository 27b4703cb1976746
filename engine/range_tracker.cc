#include "engine/range_tracker.h"

#include "absl/base/macros.h"

// Why the quick way is safe.  A shared hold writes its range into a slot and
// then reads exclusive_count_; an exclusive one raises exclusive_count_ and
// then reads the slots.  All these accesses are sequentially consistent, so at
// least one sees the other: either the exclusive hold waits for the slot, or
// the shared one gives its slot back and queues up.  Emptying a slot and
// sleeping until it is empty pair up in the same way, with the mutex between
// the sleeper's look at the slots and its sleep.
//
// An exclusive hold that reads kBeingTaken cannot tell the range and counts it
// as its own; its taker has yet to read exclusive_count_, and will see it.  If
// a slot changes hands between the reads of its end and of its begin, the
// newcomer, too, will see exclusive_count_ and go away.

namespace spindle {

RangeTracker::Hold::Hold(RangeTracker* tracker, ByteRange range, Mode mode)
    : tracker_(tracker), range_(range), mode_(mode) {
  tracker_->acquire(this);
}

RangeTracker::Hold::Hold(RangeTracker* tracker, ByteRange range, Mode mode,
                         TryTag)
    : tracker_(tracker), range_(range), mode_(mode) {
  tracker_->try_acquire(this);
}

RangeTracker::Hold::~Hold() {
  if (slot_ != nullptr) {
    tracker_->free_slot(slot_);
  } else if (listed_) {
    tracker_->release(this);
  }
}

RangeTracker::~RangeTracker() {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(first_ == nullptr);
}

size_t RangeTracker::first_slot_of_this_thread() {
  static std::atomic<size_t> next{0};
  thread_local const size_t slot = next.fetch_add(1, std::memory_order_relaxed);
  return slot;
}

void RangeTracker::acquire(Hold* hold) {
  if (hold->mode_ == Mode::kShared) {
    if (take_slot(hold)) return;
  } else {
    exclusive_count_.fetch_add(1, std::memory_order_seq_cst);
  }
  absl::MutexLock lock(&mutex_);
  append_locked(hold);
  hold->granted_ = may_grant_locked(*hold);
  while (!hold->granted_) hold->may_proceed_.Wait(&mutex_);
}

bool RangeTracker::try_acquire(Hold* hold) {
  if (hold->mode_ == Mode::kShared) {
    if (take_slot(hold)) return true;
  } else {
    exclusive_count_.fetch_add(1, std::memory_order_seq_cst);
  }
  absl::MutexLock lock(&mutex_);
  append_locked(hold);
  hold->granted_ = may_grant_locked(*hold);
  if (!hold->granted_) remove_locked(hold);
  return hold->granted_;
}

void RangeTracker::release(Hold* hold) {
  absl::MutexLock lock(&mutex_);
  remove_locked(hold);
}

bool RangeTracker::take_slot(Hold* hold) {
  if (exclusive_count_.load(std::memory_order_relaxed) != 0) return false;
  // Such an end could not be told from the two special ones.
  if (hold->range_.end() == 0 || hold->range_.end() == kBeingTaken)
    return false;
  const size_t first = first_slot_of_this_thread();
  for (size_t i = 0; i < kSlotsTried; ++i) {
    Slot& slot = slots_[(first + i) % kSlots];
    uint64_t free = 0;
    if (!slot.end.compare_exchange_strong(free, kBeingTaken,
                                          std::memory_order_seq_cst))
      continue;
    slot.begin.store(hold->range_.offset, std::memory_order_seq_cst);
    slot.end.store(hold->range_.end(), std::memory_order_seq_cst);
    if (exclusive_count_.load(std::memory_order_seq_cst) != 0) {
      free_slot(&slot);
      return false;
    }
    hold->slot_ = &slot;
    return true;
  }
  return false;
}

void RangeTracker::free_slot(Slot* slot) {
  slot->end.store(0, std::memory_order_seq_cst);
  if (exclusive_count_.load(std::memory_order_seq_cst) == 0) return;
  absl::MutexLock lock(&mutex_);
  grant_waiters_locked();
}

void RangeTracker::append_locked(Hold* hold) {
  hold->listed_ = true;
  hold->previous_ = last_;
  (last_ == nullptr ? first_ : last_->next_) = hold;
  last_ = hold;
}

// Also for a hold that gives up waiting: those behind it may proceed then.
void RangeTracker::remove_locked(Hold* hold) {
  hold->listed_ = false;
  (hold->previous_ == nullptr ? first_ : hold->previous_->next_) = hold->next_;
  (hold->next_ == nullptr ? last_ : hold->next_->previous_) = hold->previous_;
  if (hold->mode_ == Mode::kExclusive)
    exclusive_count_.fetch_sub(1, std::memory_order_seq_cst);
  grant_waiters_locked();
}

void RangeTracker::grant_waiters_locked() {
  for (Hold* hold = first_; hold != nullptr; hold = hold->next_) {
    if (hold->granted_ || !may_grant_locked(*hold)) continue;
    hold->granted_ = true;
    hold->may_proceed_.Signal();
  }
}

bool RangeTracker::may_grant_locked(const Hold& hold) const {
  const bool exclusive = hold.mode_ == Mode::kExclusive;
  for (const Hold* earlier = first_; earlier != &hold;
       earlier = earlier->next_) {
    if (!exclusive && earlier->mode_ == Mode::kShared) continue;
    if (earlier->range_.overlaps(hold.range_)) return false;
  }
  return !exclusive || !overlaps_slot(hold.range_);
}

bool RangeTracker::overlaps_slot(ByteRange range) const {
  for (const Slot& slot : slots_) {
    const uint64_t end = slot.end.load(std::memory_order_seq_cst);
    if (end == 0) continue;
    if (end == kBeingTaken) return true;
    const uint64_t begin = slot.begin.load(std::memory_order_seq_cst);
    if (begin < range.end() && range.offset < end) return true;
  }
  return false;
}

}  // namespace spindle

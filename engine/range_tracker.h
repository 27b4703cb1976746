// RangeTracker: byte ranges that are in use, so that whoever must not overlap
// waits for exactly those it overlaps, and for no one else.
//
// Shared holders (ordinary writes) may overlap each other; an exclusive holder
// (a read-modify-write, a copy-on-read) overlaps nobody.  Waiters are served
// in order of arrival where they overlap, so nobody starves.
//
// While no exclusive holder is about, a shared one costs a few atomic accesses
// to a cache line that few threads share, and no mutex.
//
// Thread safety: every method, from any thread.  Making a Hold blocks; the
// holder of one range must not acquire an overlapping one.
#ifndef SPINDLE_ENGINE_RANGE_TRACKER_H_
#define SPINDLE_ENGINE_RANGE_TRACKER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/sector.h"

namespace spindle {

class RangeTracker {
 private:
  struct Slot;

 public:
  enum class Mode { kShared, kExclusive };
  struct TryTag {};
  static constexpr TryTag kTry{};

  // A range held; released by the destructor.  Lives on the holder's stack, so
  // that tracking allocates nothing.
  class Hold {
   public:
    // Waits until `range` may be held in `mode`.
    Hold(RangeTracker* tracker, ByteRange range, Mode mode);
    // Does not wait: held() tells.
    Hold(RangeTracker* tracker, ByteRange range, Mode mode, TryTag);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

    bool held() const { return slot_ != nullptr || listed_; }

   private:
    friend class RangeTracker;
    RangeTracker* const tracker_;
    const ByteRange range_;
    const Mode mode_;
    // Where a shared hold is noted that met no exclusive one; else it is in the
    // tracker's list.
    Slot* slot_ = nullptr;
    bool listed_ = false;
    // The rest is guarded by tracker_->mutex_, which no annotation can say: to
    // the analysis, the tracker's own mutex_ is another one.
    bool granted_ = false;
    Hold* previous_ = nullptr;
    Hold* next_ = nullptr;
    absl::CondVar may_proceed_;
  };

  RangeTracker() = default;
  // REQUIRES: nothing is held.
  ~RangeTracker();
  RangeTracker(const RangeTracker&) = delete;
  RangeTracker& operator=(const RangeTracker&) = delete;

 private:
  friend class Hold;

  // One shared hold that went the quick way.  `end` is 0 while the slot is
  // free and kBeingTaken while its range is being written into it.
  struct alignas(64) Slot {
    std::atomic<uint64_t> begin{0};
    std::atomic<uint64_t> end{0};
  };
  static constexpr size_t kSlots = 64;
  static constexpr size_t kSlotsTried = 4;
  static constexpr uint64_t kBeingTaken = UINT64_MAX;

  static size_t first_slot_of_this_thread();

  void acquire(Hold* hold) ABSL_LOCKS_EXCLUDED(mutex_);
  bool try_acquire(Hold* hold) ABSL_LOCKS_EXCLUDED(mutex_);
  void release(Hold* hold) ABSL_LOCKS_EXCLUDED(mutex_);

  bool take_slot(Hold* hold) ABSL_LOCKS_EXCLUDED(mutex_);
  void free_slot(Slot* slot) ABSL_LOCKS_EXCLUDED(mutex_);

  void append_locked(Hold* hold) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void remove_locked(Hold* hold) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void grant_waiters_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool may_grant_locked(const Hold& hold) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool overlaps_slot(ByteRange range) const;

  std::array<Slot, kSlots> slots_;
  // Exclusive holds, granted or waiting.  While it is not 0, slots only empty.
  std::atomic<int64_t> exclusive_count_{0};

  // A leaf: nothing is acquired while it is held.
  mutable absl::Mutex mutex_;
  // Granted and waiting holds, in order of arrival.
  Hold* first_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Hold* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_RANGE_TRACKER_H_

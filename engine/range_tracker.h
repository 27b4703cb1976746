// RangeTracker: byte ranges that are in use, so that whoever must not overlap
// waits for exactly those it overlaps, and for no one else.
//
// Shared holders (ordinary writes) may overlap each other; an exclusive holder
// (a read-modify-write, a copy-on-read) overlaps nobody.  Waiters are served
// in order of arrival where they overlap, so nobody starves.
//
// Thread safety: every method, from any thread.  acquire() blocks; the holder
// of one range must not acquire an overlapping one.
#ifndef SPINDLE_ENGINE_RANGE_TRACKER_H_
#define SPINDLE_ENGINE_RANGE_TRACKER_H_

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/sector.h"

namespace spindle {

class RangeTracker {
 public:
  enum class Mode { kShared, kExclusive };

  // A range held; released by the destructor.  Lives on the holder's stack, so
  // that tracking allocates nothing.
  class Hold {
   public:
    // Waits until `range` may be held in `mode`.
    Hold(RangeTracker* tracker, ByteRange range, Mode mode);
    ~Hold();
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    friend class RangeTracker;
    RangeTracker* const tracker_;
    const ByteRange range_;
    const Mode mode_;
    bool granted_ = false;  // guarded by tracker_->mutex_
    Hold* previous_ = nullptr;
    Hold* next_ = nullptr;
  };

  RangeTracker() = default;
  // REQUIRES: nothing is held.
  ~RangeTracker();
  RangeTracker(const RangeTracker&) = delete;
  RangeTracker& operator=(const RangeTracker&) = delete;

 private:
  friend class Hold;

  bool may_grant_locked(const Hold& hold) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // A leaf: nothing is acquired while it is held.
  mutable absl::Mutex mutex_;
  // Granted and waiting holds, in order of arrival.
  Hold* first_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Hold* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
  absl::CondVar released_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_RANGE_TRACKER_H_

// TurnTaking: how many workers may be at a queue whose items take turns at what
// they use.
//
// As a rule, one: a second worker would wait inside its item for the first, on
// the processor, and both would look slow.  But where items take long, most of
// what they wait for may be something else, that they can wait for together
// (the disk, before they come to their turn).  So when items look slow they
// have a worker each for a while; then one worker tries a few alone, and what
// was faster goes on, until it is tried again, ever more rarely while that
// shows nothing new.
//
// Thread safety: none; the scheduler guards it.
#ifndef SPINDLE_THREADPOOL_TURN_TAKING_H_
#define SPINDLE_THREADPOOL_TURN_TAKING_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "threadpool/duration_estimate.h"

namespace spindle {

class TurnTaking {
 public:
  // How many items one worker tries alone.
  static constexpr size_t kItemsOfTrial = 4;
  // So many batches in a row must be slow before anything is done about it: of
  // a worker that lost its processor for a moment one is.
  static constexpr uint32_t kSlowBatches = 4;

  bool one_at_a_time() const { return phase_ != Phase::kTogether; }
  // Whoever claims a batch now claims the trial's.
  bool on_trial() const { return phase_ == Phase::kTrial; }

  // The queue has something to do again, after a time with nothing.
  void became_busy(int64_t now_nanoseconds) { busy_since_ = now_nanoseconds; }

  // A batch that was not the trial's has ended, after `ran` items in so long.
  // `slow`: how the queue's items look; `idle`: it has nothing more to do.
  void batch_ended(uint64_t ran, int64_t nanoseconds, bool slow, bool idle,
                   int64_t now_nanoseconds) {
    if (phase_ == Phase::kAlone) {
      const bool was_slow = DurationEstimate::is_slow(nanoseconds, ran);
      slow_batches_ = was_slow ? slow_batches_ + 1 : 0;
      if (slow && slow_batches_ >= kSlowBatches &&
          now_nanoseconds >= next_change_)
        go_together(kFirstPeriod, now_nanoseconds);
      return;
    }
    if (phase_ == Phase::kTrial) return;  // it began before the trial
    items_ += ran;
    if (idle) {
      busy_ += now_nanoseconds - busy_since_;
      busy_since_ = now_nanoseconds;
    }
    if (!slow) {
      go_alone(kFirstPeriod, now_nanoseconds);
    } else if (now_nanoseconds >= next_change_) {
      busy_ += now_nanoseconds - busy_since_;
      phase_ = Phase::kTrial;
    }
  }

  // The trial's batch has ended; 0 items if it shows nothing, because the
  // worker was stuck.  Returns true if one worker was the faster way.
  bool trial_ended(uint64_t ran, int64_t nanoseconds, int64_t now_nanoseconds) {
    const bool alone = ran > 0 && is_better(ran, nanoseconds);
    const bool as_before = alone == alone_before_;
    period_ = as_before ? std::min(2 * period_, kLongestPeriod) : kFirstPeriod;
    alone_before_ = alone;
    if (alone) {
      go_alone(period_, now_nanoseconds);
    } else {
      go_together(period_, now_nanoseconds);
    }
    return alone;
  }

 private:
  enum class Phase { kAlone, kTogether, kTrial };

  // Long enough to tell the two apart, and, at most, short enough to follow a
  // guest that does something else now.
  static constexpr int64_t kFirstPeriod = 2'000'000;
  static constexpr int64_t kLongestPeriod = 64'000'000;

  void go_alone(int64_t nanoseconds, int64_t now_nanoseconds) {
    phase_ = Phase::kAlone;
    next_change_ = now_nanoseconds + nanoseconds;
  }
  void go_together(int64_t nanoseconds, int64_t now_nanoseconds) {
    phase_ = Phase::kTogether;
    slow_batches_ = 0;
    next_change_ = now_nanoseconds + nanoseconds;
    busy_since_ = now_nanoseconds;
    busy_ = 0;
    items_ = 0;
  }
  // `ran` items took one worker so long.  It must be faster by a tenth.
  bool is_better(uint64_t ran, int64_t nanoseconds) const {
    const int64_t alone = nanoseconds / static_cast<int64_t>(ran);
    if (alone < DurationEstimate::kSlowNanoseconds || items_ == 0) return true;
    return alone + alone / 10 < busy_ / static_cast<int64_t>(items_);
  }

  Phase phase_ = Phase::kAlone;
  bool alone_before_ = true;
  int64_t period_ = kFirstPeriod;
  int64_t next_change_ = 0;
  uint32_t slow_batches_ = 0;  // in a row, alone
  // Since they went together: how many items ran, and how long the queue had
  // something to do.
  uint64_t items_ = 0;
  int64_t busy_ = 0;
  int64_t busy_since_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_TURN_TAKING_H_

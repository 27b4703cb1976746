// DurationEstimate: how long the items of one queue take, roughly.
//
// A moving average that a single hung item moves only a little, because each
// sample counts for no more than kLongest.
//
// Thread safety: none; the scheduler guards it.
#ifndef SPINDLE_THREADPOOL_DURATION_ESTIMATE_H_
#define SPINDLE_THREADPOOL_DURATION_ESTIMATE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace spindle {

class DurationEstimate {
 public:
  // From here on an item is worth a worker of its own: it blocks, or computes
  // for so long that waking a worker costs little in comparison.
  static constexpr int64_t kSlowNanoseconds = 30'000;
  // The most items that a worker claims at once.
  static constexpr size_t kLargestBatch = 8;
  static constexpr size_t kLargestTurnBatch = 16;

  // Each of `count` items took `total_nanoseconds` / `count`.
  void add(int64_t total_nanoseconds, uint64_t count) {
    const int64_t sample = std::clamp<int64_t>(
        total_nanoseconds / static_cast<int64_t>(count), 0, kLongest);
    nanoseconds_ = known_ ? nanoseconds_ + (sample - nanoseconds_) / 8
                          : std::min(sample, kFirst);
    known_ = true;
  }

  // What was known was misleading: begins anew with such items.
  void restart(int64_t total_nanoseconds, uint64_t count) {
    nanoseconds_ = std::clamp<int64_t>(
        total_nanoseconds / static_cast<int64_t>(count), 0, kLongest);
    known_ = true;
  }

  // Whether `count` items that took so long together are slow.
  static bool is_slow(int64_t total_nanoseconds, uint64_t count) {
    return count > 0 &&
           total_nanoseconds >= kSlowNanoseconds * static_cast<int64_t>(count);
  }

  bool slow() const { return nanoseconds_ >= kSlowNanoseconds; }

  // How many items to claim at once: about 50 µs worth of them.
  size_t batch() const { return items_in(kBatchNanoseconds, kLargestBatch); }
  // The same where one worker does all of them: about 200 µs.
  size_t turn_batch() const {
    return items_in(kTurnBatchNanoseconds, kLargestTurnBatch);
  }

 private:
  static constexpr int64_t kLongest = 200'000;
  // What a first sample counts for, at most: slow, and soon corrected.
  static constexpr int64_t kFirst = 2 * kSlowNanoseconds;
  static constexpr int64_t kBatchNanoseconds = 50'000;
  static constexpr int64_t kTurnBatchNanoseconds = 200'000;

  size_t items_in(int64_t nanoseconds, size_t most) const {
    const int64_t items = nanoseconds / std::max<int64_t>(nanoseconds_, 1);
    return std::clamp<size_t>(static_cast<size_t>(items), 1, most);
  }

  int64_t nanoseconds_ = 0;
  bool known_ = false;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_DURATION_ESTIMATE_H_

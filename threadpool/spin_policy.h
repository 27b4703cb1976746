// SpinPolicy: whether an idle worker looks for new work for a few
// microseconds before it sleeps.
//
// A submitter that waits for each request sends the next one just after a
// worker went idle; waking that worker would cost more than the request.  So
// looking pays where work came soon after the last few times, and nowhere
// else: each success earns a little credit, each failure halves it.
//
// Thread safety: none; the scheduler guards it.
#ifndef SPINDLE_THREADPOOL_SPIN_POLICY_H_
#define SPINDLE_THREADPOOL_SPIN_POLICY_H_

#include <algorithm>
#include <cstdint>

namespace spindle {

class SpinPolicy {
 public:
  // How long a worker looks at most.
  static constexpr int64_t kSpinNanoseconds = 15'000;

  bool worth_it() const { return credit_ >= kPrice; }

  // Work was found while spinning.
  void paid_off() { credit_ = std::min(credit_ + 2, kMostCredit); }
  // Nothing came.
  void in_vain() { credit_ /= 2; }
  // A sleeping worker was woken after so long.
  void slept(int64_t nanoseconds) {
    if (nanoseconds < kSoonNanoseconds)
      credit_ = std::min(credit_ + 1, kMostCredit);
  }

 private:
  // Includes the time that it takes to wake a thread.
  static constexpr int64_t kSoonNanoseconds = 30'000;
  static constexpr int kPrice = 2;
  static constexpr int kMostCredit = 16;

  int credit_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_THREADPOOL_SPIN_POLICY_H_

// Runs a body with each access to a file failing in turn: with EIO and with
// ENOSPC, once and from then on.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_SUPPORT_FAILING_ACCESSES_H_
#define SPINDLE_TESTS_SUPPORT_FAILING_ACCESSES_H_

#include "absl/functional/function_ref.h"
#include "tests/support/observing_driver.h"

namespace spindle::testing {

// One failure that is to come.
struct FailAt {
  int nth = 1;  // of the accesses from arm() on
  int error_number = 0;
  ObservingDriver::Repeat repeat = ObservingDriver::Repeat::kOnce;

  bool from_then_on() const {
    return repeat == ObservingDriver::Repeat::kFromThenOn;
  }
  void arm(ObservingDriver* file, AccessMatch match = {}) const {
    file->fail_at(match, error_number, nth, repeat);
  }
};

// Calls `body` with the first access failing, the second, ..., and for each
// with every error and repetition.  The body prepares a file, arms the failure,
// does its work and judges; it returns false if no access failed, so there are
// no more.  Ends early when the test has failed.  Returns how often something
// failed.
int for_each_failing_access(absl::FunctionRef<bool(const FailAt&)> body);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_FAILING_ACCESSES_H_

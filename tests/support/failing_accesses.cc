#include "tests/support/failing_accesses.h"

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace spindle::testing {

int for_each_failing_access(absl::FunctionRef<bool(const FailAt&)> body) {
  using Repeat = ObservingDriver::Repeat;
  int failures = 0;
  for (const Repeat repeat : {Repeat::kOnce, Repeat::kFromThenOn}) {
    for (const int error_number : {EIO, ENOSPC}) {
      for (FailAt fail{1, error_number, repeat};; ++fail.nth) {
        SCOPED_TRACE(absl::StrCat("access ", fail.nth, " fails with errno ",
                                  error_number,
                                  fail.from_then_on() ? " from then on" : ""));
        if (!body(fail)) break;
        ++failures;
        if (::testing::Test::HasFailure()) return failures;
      }
    }
  }
  return failures;
}

}  // namespace spindle::testing

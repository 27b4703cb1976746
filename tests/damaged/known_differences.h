// Known differences: what is other than in QEMU, and shall be or may be.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TESTS_DAMAGED_KNOWN_DIFFERENCES_H_
#define SPINDLE_TESTS_DAMAGED_KNOWN_DIFFERENCES_H_

#include <string>

#include "tests/damaged/comparison.h"

namespace spindle::testing {

// Why an image of this recipe with this damage may have this difference; empty:
// it may not.
std::string reason_for(const std::string& recipe, const std::string& damage,
                       const Difference& difference);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_KNOWN_DIFFERENCES_H_

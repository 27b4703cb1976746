// The seed of a random test: SPINDLE_SEED from the environment, or a fresh one;
// printed either way, so that every run can be repeated.
//
// Thread safety: as the C library's getenv.
#ifndef SPINDLE_TESTS_SUPPORT_SEED_H_
#define SPINDLE_TESTS_SUPPORT_SEED_H_

#include <cstdint>

namespace spindle::testing {

uint64_t test_seed();

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_SEED_H_

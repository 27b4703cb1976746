// The same for tests.
#ifndef SPINDLE_BUILD_DEFS_TESTING_H_
#define SPINDLE_BUILD_DEFS_TESTING_H_

#include "build_defs/common.h"
#include "gtest/gtest.h"

#endif  // SPINDLE_BUILD_DEFS_TESTING_H_

#include "tests/support/seed.h"

#include <cstdio>
#include <cstdlib>
#include <random>

namespace spindle::testing {

uint64_t test_seed() {
  const char* text = std::getenv("SPINDLE_SEED");
  const uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 0)
                                        : std::random_device()();
  std::printf("SPINDLE_SEED=%llu\n", static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  return seed;
}

}  // namespace spindle::testing

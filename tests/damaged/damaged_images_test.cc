// Damaged images: which of them open, what reading and writing them does, and
// what check and repair say and do, beside QEMU.  What is different must be
// known (known_differences.h).
//
// A run takes some damages of each base image, by a seed that is always the
// same and printed; SPINDLE_SEED takes others, and SPINDLE_LONG all of them, of
// more base images, which takes an hour.  SPINDLE_DAMAGES is how many of each
// image; SPINDLE_DAMAGE=TEXT takes those whose names contain the text.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "tests/damaged/base_image.h"
#include "tests/damaged/comparison.h"
#include "tests/damaged/damages.h"
#include "tests/damaged/known_differences.h"
#include "tests/support/seed.h"

namespace spindle::testing {
namespace {

bool is_long() { return std::getenv("SPINDLE_LONG") != nullptr; }

std::vector<BaseRecipe> recipes() {
  std::vector<BaseRecipe> chosen = base_recipes();
  std::erase_if(chosen, [](const BaseRecipe& recipe) {
    return recipe.only_in_long_runs && !is_long();
  });
  return chosen;
}

uint64_t seed() {
  constexpr uint64_t kSeed = 2009;
  if (std::getenv("SPINDLE_SEED") != nullptr) return test_seed();
  std::printf("SPINDLE_SEED=%llu\n", static_cast<unsigned long long>(kSeed));
  return kSeed;
}

size_t count_of_a_short_run() {
  size_t count = 16;
  if (const char* const text = std::getenv("SPINDLE_DAMAGES")) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &count));
  }
  return count;
}

class DamagedImages : public ::testing::TestWithParam<BaseRecipe> {
 protected:
  std::vector<Damage> choose(std::vector<Damage> damages) const {
    if (const char* const only = std::getenv("SPINDLE_DAMAGE")) {
      std::erase_if(damages, [only](const Damage& damage) {
        return !absl::StrContains(damage.name, only);
      });
      return damages;
    }
    if (is_long()) return damages;
    std::mt19937_64 random(seed());
    // The sound image is always one of them.
    std::shuffle(damages.begin() + 1, damages.end(), random);
    damages.resize(std::min(damages.size(), count_of_a_short_run()));
    return damages;
  }
};

TEST_P(DamagedImages, AreTakenAsQemuTakesThem) {
  const auto base = make_base(GetParam());
  ASSERT_TRUE(base.ok()) << base.status();
  Comparison comparison(*base);
  for (const Damage& damage : choose(damages_of(*base))) {
    for (const Difference& difference :
         comparison.compare(damaged_by(damage, base->bytes))) {
      const std::string& recipe = base->recipe.name;
      if (!reason_for(recipe, damage.name, difference).empty()) continue;
      ADD_FAILURE() << "DIFF " << recipe << " | " << damage.name << " | "
                    << difference.question << " | " << difference.kind << "\n"
                    << difference.details;
    }
  }
  for (const Companion& companion : base->companions)
    ::unlink(companion.path.c_str());
}

INSTANTIATE_TEST_SUITE_P(Bases, DamagedImages, ::testing::ValuesIn(recipes()),
                         [](const auto& info) {
                           return absl::StrReplaceAll(info.param.name,
                                                      {{"-", "_"}});
                         });

}  // namespace
}  // namespace spindle::testing

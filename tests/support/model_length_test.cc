#include "tests/support/model_length.h"

#include <vector>

#include "gtest/gtest.h"

namespace spindle::testing {
namespace {

using Lengths = std::vector<uint64_t>;

TEST(ModelLength, IsOneWhereNothingChanges) {
  ModelLength length(100);
  EXPECT_EQ(length.newest(), 100u);
  EXPECT_EQ(length.possible(length.now(), length.now()), Lengths{100});
}

TEST(ModelLength, IsEitherDuringAChange) {
  ModelLength length(100);
  const uint64_t before = length.now();
  length.begin(200);
  EXPECT_EQ(length.newest(), 200u);
  const uint64_t during = length.now();
  length.end(true);
  const uint64_t after = length.now();
  EXPECT_EQ(length.possible(before, before), Lengths{100});
  EXPECT_EQ(length.possible(before, during), (Lengths{200, 100}));
  EXPECT_EQ(length.possible(during, during), (Lengths{200, 100}));
  EXPECT_EQ(length.possible(during, after), (Lengths{200, 100}));
  EXPECT_EQ(length.possible(after, after), Lengths{200});
}

TEST(ModelLength, MayHaveBeenSeveral) {
  ModelLength length(1);
  const uint64_t first = length.now();
  for (const uint64_t bytes : {2, 3}) {
    length.begin(bytes);
    length.end(true);
  }
  const uint64_t middle = length.now();
  length.begin(4);
  EXPECT_EQ(length.possible(first, length.now()), (Lengths{4, 3, 2, 1}));
  EXPECT_EQ(length.possible(middle, middle), Lengths{3});
}

TEST(ModelLength, WasNeverWhatAFailedChangeWanted) {
  ModelLength length(100);
  length.begin(200);
  const uint64_t during = length.now();
  length.end(false);
  EXPECT_EQ(length.newest(), 100u);
  EXPECT_EQ(length.possible(during, length.now()), Lengths{100});
}

}  // namespace
}  // namespace spindle::testing

#include "tools/io_text.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/status/status.h"
#include "engine/errors.h"

namespace spindle {
namespace {

TEST(ScaledSize, HasThreeDecimalsUnlessTheyAreZeroes) {
  EXPECT_EQ(scaled_size(0), "0 bytes");
  EXPECT_EQ(scaled_size(511), "511 bytes");
  EXPECT_EQ(scaled_size(2.531675), "2.531675 bytes");
  EXPECT_EQ(scaled_size(1536), "1.500 KiB");
  EXPECT_EQ(scaled_size(1 << 20), "1 MiB");
  EXPECT_EQ(scaled_size(1024.0 * 1024 - 1), "1023.999 KiB");
  EXPECT_EQ(scaled_size(9.2e18), "7.980 EiB");
}

TEST(ReadNumber, IsBelowTwoToThe63rd) {
  EXPECT_EQ(read_number("1.5k"), 1536u);
  EXPECT_EQ(read_number("9223372036854775807"), 9223372036854775807u);
  EXPECT_FALSE(read_number("9223372036854775808").has_value());
  EXPECT_FALSE(read_number("k").has_value());
}

TEST(ReadPattern, IsAByteInTheNotationOfC) {
  EXPECT_EQ(read_pattern("0xff"), 255);
  EXPECT_EQ(read_pattern("077"), 63);
  for (const char* wrong : {"256", "-1", "", "x", "1k"})
    EXPECT_FALSE(read_pattern(wrong).has_value()) << wrong;
}

TEST(FailureText, BeyondTheEndIsAnInputOutputError) {
  EXPECT_EQ(failure_text(absl::OutOfRangeError("x")), "Input/output error");
  EXPECT_EQ(failure_text(errno_status(28, "x")), "No space left on device");
}

}  // namespace
}  // namespace spindle

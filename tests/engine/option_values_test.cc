#include "engine/option_values.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"

namespace spindle {
namespace {

TEST(ParseSize, ReadsNumbersWithSuffixes) {
  const struct {
    const char* text;
    uint64_t value;
  } cases[] = {
      {"0", 0},
      {"512", 512},
      {"7b", 7},
      {"7B", 7},
      {"1k", 1024},
      {"64K", 65536},
      {"1M", uint64_t{1} << 20},
      {"3g", uint64_t{3} << 30},
      {"2T", uint64_t{2} << 40},
      {"1P", uint64_t{1} << 50},
      {"15E", uint64_t{15} << 60},
      {"1.5k", 1536},
      {"0.5M", 524288},
      {"1.0b", 1},
      {"0x200", 512},
      {"0x2k", 2048},
      {"0X1b", 27},
      {"0x1E", 30},
      {" 5", 5},
      {"18446744073709551615", UINT64_MAX},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(parse_size(c.text), std::optional<uint64_t>(c.value)) << c.text;
  }
}

TEST(ParseSize, RefusesEverythingElse) {
  for (const char* text :
       {"", "k", "-1", "1q", "1kk", "1k ", "1.5", "0.1b", "1e3", "16E",
        "18446744073709551616", "0x", "0xg", "0x1kk", "0x1.5k",
        "0x400000000000000k", "one", "."}) {
    EXPECT_EQ(parse_size(text), std::nullopt) << text;
  }
}

TEST(ParseNumberOption, TakesWhatQemuTakes) {
  EXPECT_EQ(*parse_number_option("n", "16"), 16u);
  EXPECT_EQ(*parse_number_option("n", " 1"), 1u);
  EXPECT_EQ(*parse_number_option("n", "0x10"), 16u);
  // Out of every option's range, then.
  EXPECT_EQ(*parse_number_option("n", "-1"), ~uint64_t{0});
  for (const char* text : {"", "1k", "x", "99999999999999999999"}) {
    EXPECT_EQ(parse_number_option("n", text).status().code(),
              absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(ParseBoolOption, TakesOnAndOff) {
  for (const char* yes : {"on", "yes", "true", "y"})
    EXPECT_TRUE(parse_bool_option("b", yes).value_or(false)) << yes;
  for (const char* no : {"off", "no", "false", "n"})
    EXPECT_FALSE(parse_bool_option("b", no).value_or(true)) << no;
  EXPECT_EQ(parse_bool_option("b", "Yes").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(OptionValues, PreallocationIsByQemusNames) {
  EXPECT_EQ(parse_preallocation("off"), Preallocation::kOff);
  EXPECT_EQ(parse_preallocation("metadata"), Preallocation::kMetadata);
  EXPECT_EQ(parse_preallocation("falloc"), Preallocation::kFalloc);
  EXPECT_EQ(parse_preallocation("full"), Preallocation::kFull);
  EXPECT_FALSE(parse_preallocation("").has_value());
  EXPECT_FALSE(parse_preallocation("Full").has_value());
}

}  // namespace
}  // namespace spindle

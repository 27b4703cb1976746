#include "formats/filters/filter_options.h"

#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(FilterOptions, TakesWhatIsThereAndLeavesTheRest) {
  FilterOptions options("x",
                        {{"a", "1k"}, {"b", "7"}, {"c", "on"}, {"d", "t"}});
  uint64_t a = 0;
  uint64_t b = 0;
  uint64_t absent = 42;
  bool c = false;
  options.take_size("a", &a);
  options.take_number("b", &b);
  options.take_number("absent", &absent);
  options.take_bool("c", &c);
  EXPECT_EQ(a, 1024u);
  EXPECT_EQ(b, 7u);
  EXPECT_EQ(absent, 42u);
  EXPECT_TRUE(c);
  EXPECT_EQ(options.finish().message(),
            "Block format 'x' does not support the option 'd'");
  EXPECT_EQ(options.take_text("d"), "t");
  EXPECT_EQ(options.take_text("d"), std::nullopt);
  EXPECT_TRUE(options.finish().ok());
}

TEST(FilterOptions, KeepsTheFirstError) {
  FilterOptions options("x", {{"a", "many"}, {"b", "more"}});
  uint64_t value = 5;
  options.take_size("a", &value);
  options.take_number("b", &value);
  options.note(absl::InternalError("later"));
  EXPECT_EQ(value, 5u);
  EXPECT_EQ(options.finish().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(options.finish().message().find("Parameter 'a'"), 0u);
}

}  // namespace
}  // namespace spindle

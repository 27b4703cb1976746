#include "tools/cli_text.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

namespace spindle {
namespace {

using Options = std::vector<std::pair<std::string, std::string>>;

// The right-hand sides are what qemu-img info printed for images of that size.
TEST(HumanSize, PrintsWhatQemuPrints) {
  EXPECT_EQ(human_size(0), "0 B");
  EXPECT_EQ(human_size(512), "512 B");
  EXPECT_EQ(human_size(1024), "1 KiB");
  EXPECT_EQ(human_size(196608), "192 KiB");
  EXPECT_EQ(human_size(1000448), "977 KiB");
  EXPECT_EQ(human_size(2297856), "2.19 MiB");
  EXPECT_EQ(human_size(uint64_t{1} << 40), "1 TiB");
}

TEST(ParseImageSize, TellsTooLargeFromNoSize) {
  EXPECT_EQ(*parse_image_size("1.5k"), 1536u);
  for (const char* text :
       {"8E", "16E", "99999999999999999999", "9223372036854775808"}) {
    EXPECT_NE(parse_image_size(text).status().message().find("Must be between"),
              std::string::npos)
        << text;
  }
  for (const char* text : {"", "k", "1q", "-1", "1Z"}) {
    EXPECT_NE(parse_image_size(text).status().message().find("suffixes"),
              std::string::npos)
        << text;
  }
}

TEST(ParseOptionList, SplitsAtCommas) {
  EXPECT_EQ(parse_option_list("a=1,b=x=y").options,
            (Options{{"a", "1"}, {"b", "x=y"}}));
  EXPECT_EQ(parse_option_list("a=x,,y,b=").options,
            (Options{{"a", "x,y"}, {"b", ""}}));
  EXPECT_EQ(parse_option_list("lazy_refcounts").options,
            (Options{{"lazy_refcounts", "on"}}));
  EXPECT_TRUE(parse_option_list("").options.empty());
}

TEST(ParseOptionList, KnowsTheCryForHelp) {
  EXPECT_TRUE(parse_option_list("help").help);
  EXPECT_TRUE(parse_option_list("a=1,?").help);
  EXPECT_FALSE(parse_option_list("a=help").help);
}

TEST(EscapeOptionValue, IsReadBack) {
  const std::string value = "a,b,,c=d";
  EXPECT_EQ(parse_option_list("n=" + escape_option_value(value)).options,
            (Options{{"n", value}}));
}

}  // namespace
}  // namespace spindle

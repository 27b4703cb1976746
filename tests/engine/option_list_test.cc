#include "engine/option_list.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

// "name=value" of each, "!" behind short forms.
std::string read(const std::string& text, const std::string& implied = "") {
  std::vector<std::string> items;
  for (const OptionItem& item : split_option_list(text, implied)) {
    items.push_back(
        absl::StrCat(item.name, "=", item.value, item.is_short ? "!" : ""));
  }
  return absl::StrJoin(items, " ");
}

TEST(OptionList, SplitsAtSingleCommas) {
  EXPECT_EQ(read("a=1,b=2"), "a=1 b=2");
  EXPECT_EQ(read("a=1,,2,b=x=y"), "a=1,2 b=x=y");
  EXPECT_EQ(read("a=,"), "a=");
  EXPECT_EQ(read(""), "");
  EXPECT_EQ(read("=x"), "=x");
}

TEST(OptionList, NamesHaveNoEscapes) {
  EXPECT_EQ(read(",,"), "=on! =on!");
  EXPECT_EQ(read("a,,b"), "a=on! =on! b=on!");
  EXPECT_EQ(read("a=1,b,,c=2"), "a=1 b=on! =on! c=2");
  EXPECT_EQ(read("a,,b=c", "file"), "file=a,b=c");
}

TEST(OptionList, ShortFormsMeanOnOrOff) {
  EXPECT_EQ(read("lazy,nolazy,no"), "lazy=on! lazy=off! =off!");
}

TEST(OptionList, OnlyTheFirstHasAnImpliedName) {
  EXPECT_EQ(read("x,y", "file"), "file=x y=on!");
  EXPECT_EQ(read(",y=1", "file"), "file= y=1");
  EXPECT_EQ(read("a=1,x", "file"), "a=1 x=on!");
}

TEST(OptionList, HelpIsAnItemOfItsOwn) {
  EXPECT_TRUE(asks_for_help("a=1,help"));
  EXPECT_TRUE(asks_for_help("?"));
  EXPECT_FALSE(asks_for_help("help=1"));
  EXPECT_FALSE(asks_for_help("a=,,help"));
}

TEST(OptionList, EscapedValuesComeBack) {
  EXPECT_EQ(read(absl::StrCat("a=", escape_option_value("x,y,,"))), "a=x,y,,");
}

}  // namespace
}  // namespace spindle

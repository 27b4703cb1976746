// What files of rows may say, and what they say in all.
//
//   row_file_test FILE...
#include "tests/tools/row_file.h"

#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

std::vector<std::string>* files = nullptr;  // of rows

TEST(RowFileTest, IsReadLineByLine) {
  const auto file = parse_row_file(
      "# a comment\n"
      "fixture one\n"
      "  touch a\n"
      "  touch b\n"
      "\n"
      "row first\n"
      "  given one\n"
      "  prepare touch c\n"
      "  content a\n"
      "  usage\n"
      "  differs stderr for a reason\n"
      "  true\n"
      "row second\n"
      "  false\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->fixtures.at("one"),
            (std::vector<std::string>{"touch a", "touch b"}));
  ASSERT_EQ(file->rows.size(), 2u);
  const Row& row = file->rows[0];
  EXPECT_EQ(row.name, "first");
  EXPECT_EQ(row.line, 6);
  EXPECT_EQ(row.fixtures, std::vector<std::string>{"one"});
  EXPECT_EQ(row.preparations, std::vector<std::string>{"touch c"});
  EXPECT_EQ(row.comparisons.at("a"), FileComparison::kContent);
  EXPECT_TRUE(row.compare_usage);
  EXPECT_EQ(row.differences.at("stderr"), "for a reason");
  EXPECT_EQ(row.commands, std::vector<std::string>{"true"});
}

TEST(RowFileTest, SaysWhichLineIsWrong) {
  for (const char* text : {
           "row a\n  given nothing\n  true\n",
           "row a\n  differs stderr\n  true\n",
           "row a\n  differs status for a reason\n  true\n",
           "row a\n",
           "row a\n  true\nrow a\n  true\n",
           "  true\n",
           "lines b\n",
       }) {
    const auto file = parse_row_file(text);
    ASSERT_FALSE(file.ok()) << text;
    EXPECT_TRUE(absl::StrContains(file.status().message(), "line"))
        << file.status();
  }
}

// Of each program's rows, 2 % may be meant to differ.
TEST(RowFileTest, FewRowsAreMeantToDiffer) {
  struct Count {
    size_t rows = 0;
    size_t differing = 0;
  };
  std::map<std::string, Count> counts;  // by the program's short name
  for (const std::string& path : *files) {
    const auto bytes = read_file(path);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    const auto file = parse_row_file(std::string(bytes->begin(), bytes->end()));
    ASSERT_TRUE(file.ok()) << path << ": " << file.status();
    const std::string name = path.substr(path.rfind('/') + 1);
    Count& count = counts[name.substr(0, name.find('_'))];
    for (const Row& row : file->rows) {
      ++count.rows;
      if (!row.differences.empty()) ++count.differing;
    }
  }
  for (const auto& [name, count] : counts) {
    std::printf("%s: %zu rows, %zu meant to differ\n", name.c_str(), count.rows,
                count.differing);
    EXPECT_LE(count.differing * 50, count.rows) << name;
  }
}

}  // namespace
}  // namespace spindle::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::vector<std::string> paths(argv + 1, argv + argc);
  spindle::testing::files = &paths;
  return RUN_ALL_TESTS();
}

// Every excerpt of code in a document stands, line for line, in the file that
// it is said to come from: "<!-- from FILE -->", then a block fenced by ```.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace spindle {
namespace {

constexpr char kDocument[] = "docs/how-to-write-a-driver.md";

std::string read_source(absl::string_view path) {
  std::ifstream file(absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                                  std::getenv("TEST_WORKSPACE"), "/", path));
  EXPECT_TRUE(file.good()) << path;
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Excerpt {
  std::string file;  // empty: not stated
  std::string text;
};

std::vector<Excerpt> excerpts_of(const std::string& document) {
  std::vector<Excerpt> excerpts;
  std::string file;
  bool inside = false;
  for (absl::string_view line : absl::StrSplit(document, '\n')) {
    if (inside && line != "```") {
      absl::StrAppend(&excerpts.back().text, line, "\n");
    } else if (inside) {
      inside = false;
      file.clear();
    } else if (absl::StartsWith(line, "```")) {
      inside = true;
      excerpts.push_back({file, ""});
    } else if (absl::ConsumePrefix(&line, "<!-- from ") &&
               absl::ConsumeSuffix(&line, " -->")) {
      file = std::string(line);
    }
  }
  EXPECT_FALSE(inside) << "a block has no end";
  return excerpts;
}

TEST(Documents, ExcerptsStandInTheirFiles) {
  const std::vector<Excerpt> excerpts = excerpts_of(read_source(kDocument));
  EXPECT_GE(excerpts.size(), 9u);
  for (const Excerpt& excerpt : excerpts) {
    ASSERT_NE(excerpt.file, "") << "from where is:\n" << excerpt.text;
    EXPECT_TRUE(absl::StrContains(absl::StrCat("\n", read_source(excerpt.file)),
                                  absl::StrCat("\n", excerpt.text)))
        << excerpt.file << " has no\n"
        << excerpt.text;
  }
}

}  // namespace
}  // namespace spindle

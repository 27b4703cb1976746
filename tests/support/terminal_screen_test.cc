#include "tests/support/terminal_screen.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_join.h"

namespace spindle::testing {
namespace {

std::string shown(const std::string& bytes) {
  TerminalScreen screen;
  screen.print(bytes);
  return absl::StrJoin(screen.lines(), "|");
}

TEST(TerminalScreen, ShowsWhatATerminalShows) {
  EXPECT_EQ(shown(""), "");
  EXPECT_EQ(shown("a b \r\nc"), "a b|c");
  EXPECT_EQ(shown("abc\rx"), "xbc");
  EXPECT_EQ(shown("abc\b\bx"), "axc");
  EXPECT_EQ(shown("abc\x1b[2Dx"), "axc");
  EXPECT_EQ(shown("abc\x1b[D\x1b[K"), "ab");
  EXPECT_EQ(shown("abc\b\x1b[1Kd"), "  d");
  EXPECT_EQ(shown("abc\r\x1b[Cx"), "axc");
  EXPECT_EQ(shown("abc\r\x1b[P"), "bc");
  EXPECT_EQ(shown("abc\r\x1b[2@"), "  abc");
  EXPECT_EQ(shown("abc\r\ndef\x1b[A\r\x1b[J"), "");
  EXPECT_EQ(shown("\x1b[1mbold\x1b[m\x07"), "bold");
  EXPECT_EQ(shown("a\x1b[5Cb"), "a     b");
}

TEST(TerminalScreen, ASequenceMayComeInPieces) {
  TerminalScreen screen;
  for (const char* piece : {"abc\x1b", "[", "2", "Dx"}) screen.print(piece);
  EXPECT_EQ(screen.lines()[0], "axc");
  EXPECT_EQ(screen.cursor_column(), 2u);
}

}  // namespace
}  // namespace spindle::testing

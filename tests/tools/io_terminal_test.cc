// spindle-io at a terminal, beside qemu-io: the same keys, the same screen.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/terminal_session.h"

namespace spindle {
namespace {

using ::spindle::testing::temporary_path;
using ::spindle::testing::TerminalSession;

constexpr char kPrompt[] = "qemu-io>";
constexpr char kUp[] = "\x1b[A";
constexpr char kDown[] = "\x1b[B";
constexpr char kRight[] = "\x1b[C";
constexpr char kLeft[] = "\x1b[D";

struct Step {
  std::string keys;
  // What then stands on the last line.
  std::string last_line = kPrompt;
};

std::string masked(const std::string& line) {
  return std::regex_replace(line, std::regex("(, 1 ops;).*"), "$1");
}

class AtATerminal : public ::testing::Test {
 protected:
  AtATerminal() {
    const std::string ours =
        absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                     std::getenv("TEST_WORKSPACE"), "/tools/spindle-io");
    // Under the other's name, which both show.
    const std::string folder = temporary_path("bin");
    EXPECT_EQ(::mkdir(folder.c_str(), 0755), 0);
    our_program_ = folder + "/qemu-io";
    EXPECT_EQ(::symlink(ours.c_str(), our_program_.c_str()), 0);
    EXPECT_TRUE(testing::run_tool_ok(
                    {"qemu-img", "create", "-q", "-f", "raw", image_, "1M"})
                    .ok());
  }
  ~AtATerminal() override {
    ::unlink(our_program_.c_str());
    ::unlink(image_.c_str());
  }

  // The screen and, if the last step ended the program, how.
  std::pair<std::string, int> run(const std::string& program,
                                  const std::vector<Step>& steps) {
    SCOPED_TRACE(program);
    auto session = TerminalSession::start({program, "-f", "raw", image_});
    EXPECT_TRUE(session.ok()) << session.status();
    EXPECT_TRUE((*session)->wait_for_last_line(kPrompt));
    int end = -1;
    for (const Step& step : steps) {
      (*session)->type(step.keys);
      if (step.last_line.empty()) {
        end = (*session)->wait_for_end();
        break;
      }
      EXPECT_TRUE((*session)->wait_for_last_line(step.last_line))
          << step.last_line << "\n"
          << absl::StrJoin((*session)->screen().lines(), "\n");
    }
    std::string screen;
    for (const std::string& line : (*session)->screen().lines())
      absl::StrAppend(&screen, masked(line), "\n");
    return {screen, end};
  }
  // REQUIRES: the last step ends the program: it has no last line.
  void expect_same(const std::vector<Step>& steps, int end = 0) {
    const auto theirs = run("qemu-io", steps);
    const auto ours = run(our_program_, steps);
    EXPECT_EQ(ours.first, theirs.first);
    EXPECT_EQ(ours.second, theirs.second);
    EXPECT_EQ(ours.second, end);
  }

  const std::string image_ = temporary_path("image");
  std::string our_program_;
};

TEST_F(AtATerminal, RunsLines) {
  expect_same({{"length\r"},
               {"write -P 7 0 64k\r"},
               {"foo\r"},
               {"\r"},
               {"read -P 7 0 512\r"},
               {"q\r", ""}},
              /*end=*/256);
}

TEST_F(AtATerminal, EndsAtTheEndOfTheInput) {
  expect_same({{"length\r"}, {"\x04", ""}});
  expect_same({{"leng", "qemu-io> leng"}, {"\x04", ""}});
  expect_same({{"leng", "qemu-io> leng"}, {"\x01\x04", ""}});
}

TEST_F(AtATerminal, EditsTheLine) {
  const std::string begin = std::string(kPrompt) + " ";
  expect_same({{"legth", begin + "legth"},
               {absl::StrCat(kLeft, kLeft, kLeft, "n"), begin + "length"},
               {"\r"},
               {"xlengthy", begin + "xlengthy"},
               {"\x7f", begin + "xlength"},
               {absl::StrCat("\x01", kRight, "\x7f"), begin + "length"},
               {absl::StrCat(kRight, "\x05\r")},
               {"read 0 512 1 2", begin + "read 0 512 1 2"},
               {"\x7f\x7f\x7f\x7f", begin + "read 0 512"},
               {"\r"},
               {"q\r", ""}});
}

TEST_F(AtATerminal, Remembers) {
  const std::string begin = std::string(kPrompt) + " ";
  expect_same({{"length\r"},
               {"read 0 512\r"},
               {kUp, begin + "read 0 512"},
               {kUp, begin + "length"},
               {kDown, begin + "read 0 512"},
               {"\r"},
               {absl::StrCat(kUp, kUp), begin + "length"},
               {"\r"},
               {"q\r", ""}});
}

TEST_F(AtATerminal, CompletesCommands) {
  const std::string begin = std::string(kPrompt) + " ";
  expect_same({{"le\t", begin + "length"},
               {"\r"},
               {"rem\t", begin + "remove_break"},
               {std::string(13, '\x7f'), kPrompt},
               {"all\t0\r"},
               {"re", begin + "re"},
               {"\t", begin + "re"},
               {"s\t 1\r"},
               {"zzz\t", begin + "zzz"},
               {"\x7f\x7f\x7f", kPrompt},
               {"q\r", ""}},
              /*end=*/256);
}

// They appear while nothing is typed, and the line is there again.
TEST_F(AtATerminal, ShowsWhatEndsMeanwhile) {
  // Long enough for the prompt to be there first.
  const auto session = TerminalSession::start(
      {our_program_, "--image-opts",
       "driver=null-co,size=1M,read-zeroes=on,latency-ns=300000000"});
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->wait_for_last_line(kPrompt));
  (*session)->type("aio_read -C 0 512\r");
  ASSERT_TRUE((*session)->wait_for_text("512,1,"));
  EXPECT_TRUE((*session)->wait_for_last_line(kPrompt));
  (*session)->type("q\r");
  EXPECT_EQ((*session)->wait_for_end(), 0);
}

TEST_F(AtATerminal, ASignalEndsIt) {
  const std::vector<Step> steps = {{"leng", "qemu-io> leng"}, {"\x03", ""}};
  for (const std::string& program : {std::string("qemu-io"), our_program_}) {
    const int end = run(program, steps).second;
    EXPECT_TRUE(WIFSIGNALED(end) && WTERMSIG(end) == SIGINT) << end;
  }
}

}  // namespace
}  // namespace spindle

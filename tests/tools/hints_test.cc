// The lines that say what to do about an error.
#include "tools/hints.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/qemu_tools.h"
#include "tests/support/terminal_session.h"

namespace spindle {
namespace {

namespace fs = std::filesystem;
using ::spindle::testing::run_tool_apart;
using ::spindle::testing::run_tool_ok;
using ::spindle::testing::temporary_path;
using ::spindle::testing::TerminalSession;
using Arguments = std::vector<std::string>;

constexpr char kHint[] = "\nhint: ";

std::string program(const std::string& name) {
  return absl::StrCat(std::getenv("TEST_SRCDIR"), "/",
                      std::getenv("TEST_WORKSPACE"), "/tools/", name);
}

class HintsTest : public ::testing::Test {
 protected:
  HintsTest() { fs::create_directory(folder_); }
  ~HintsTest() override {
    std::error_code error;
    fs::remove_all(folder_, error);
  }
  std::string at(const std::string& name) const {
    return absl::StrCat(folder_, "/", name);
  }
  // Runs a script in the folder, with `img` and `io` for our programs.
  std::string errors_of(const std::string& script, const char* when) const {
    const auto result = run_tool_apart(
        {"sh", "-c",
         absl::StrCat("cd '", folder_, "'; export SPINDLE_HINTS=", when,
                      "; img() { '", program("spindle-img"),
                      "' \"$@\"; }; io() { '", program("spindle-io"),
                      "' \"$@\"; }; ", script)});
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? result->errors : "";
  }
  // The command fails, and says what to do: `words` is in that line.
  void expect_hint(const std::string& script, const std::string& words) const {
    SCOPED_TRACE(script);
    const std::string errors = errors_of(script, "always");
    const size_t at = errors.find(kHint);
    ASSERT_NE(at, std::string::npos) << errors;
    EXPECT_TRUE(absl::StrContains(errors.substr(at), words)) << errors;
    // Without it they are the same.
    const std::string never = errors_of(script, "never");
    EXPECT_EQ(errors.substr(0, at + 1), never);
  }
  void run(const std::string& script) const {
    const auto output =
        run_tool_ok({"sh", "-c", absl::StrCat("cd '", folder_, "'; ", script)});
    ASSERT_TRUE(output.ok()) << output.status();
  }

  const std::string folder_ = temporary_path("hints");
};

TEST_F(HintsTest, UnknownFormats) {
  run("qemu-img create -q -f raw a 1M");
  expect_hint("img info -f foo a", "spindle-img --help");
  expect_hint("img create -f foo b 1M", "spindle-img --help");
  expect_hint("img convert -O foo a b", "spindle-img --help");
  expect_hint("img info -f qcow2 a", "\"spindle-img info a\"");
}

TEST_F(HintsTest, LockedImages) {
  run("qemu-img create -q -f qcow2 a 1M");
  expect_hint(
      "qemu-io -c 'sleep 20000' a > held 2>&1 & holder=$!; "
      "for i in $(seq 100); do img info a > /dev/null 2>&1 || break; "
      "sleep 0.1; done; img info a > /dev/null; kill $holder; wait",
      "add -U");
}

TEST_F(HintsTest, EncryptedImagesWithoutASecret) {
  run("qemu-img create -q -f qcow2 --object secret,id=s,data=abc -o "
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a 1M");
  expect_hint("img map a", "encrypt.key-secret=s,file.filename=a ");
  expect_hint("io -c map a", "--object secret,id=s,file=FILE");
}

TEST_F(HintsTest, BackingFiles) {
  run("qemu-img create -q -f raw a 1M; "
      "qemu-img create -q -f qcow2 -b a -F raw b");
  expect_hint("img convert -B a -O qcow2 b c", "with -F (");
  expect_hint("img create -f qcow2 -u -b a c 1M", "with -F (");
  expect_hint("img rebase -u -b a b", "with -F (");
  expect_hint("mv a moved; img map b; mv moved a",
              "\"spindle-img rebase -u -b FILE -F FORMAT b\"");
}

TEST_F(HintsTest, CorruptImages) {
  run("qemu-img create -q -f qcow2 a 1M; "
      "printf '\\002' | dd of=a bs=1 seek=79 conv=notrunc status=none");
  expect_hint("img resize a 2M", "\"spindle-img check -r all a\"");
  // As it says.
  EXPECT_EQ(errors_of("img check -q -r all a && img resize -q a 2M", "always"),
            "");
}

TEST_F(HintsTest, AreForTerminals) {
  run("qemu-img create -q -f raw a 1M");
  for (const char* name : {"spindle-img", "spindle-io"}) {
    Arguments command = {program(name), "-f", "foo", at("a")};
    if (absl::EndsWith(name, "img"))
      command.insert(command.begin() + 1, "info");
    const auto apart = run_tool_apart(command);
    ASSERT_TRUE(apart.ok());
    EXPECT_EQ(apart->exit_code, 1);
    EXPECT_FALSE(absl::StrContains(apart->errors, kHint));
    const auto session = TerminalSession::start(command);
    ASSERT_TRUE(session.ok()) << session.status();
    (*session)->wait_for_end();
    const std::string screen =
        absl::StrJoin((*session)->screen().lines(), "\n");
    EXPECT_TRUE(absl::StrContains(screen, kHint)) << screen;
  }
}

TEST(HintFor, SaysNothingWhereThereIsNothingToSay) {
  EXPECT_EQ(hint_for("Could not open 'a': No such file or directory", "img"),
            "");
  EXPECT_EQ(hint_for("warning: Image is corrupt", "img"), "");
  EXPECT_TRUE(absl::StrContains(
      hint_for("Could not open 'a b': Image is not in qcow2 format", "img"),
      "\"img info a b\""));
  EXPECT_TRUE(absl::StrContains(hint_for("Image is corrupt: x", "img"),
                                "\"img check -r all IMAGE\""));
}

}  // namespace
}  // namespace spindle

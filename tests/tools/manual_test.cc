// The manual pages and the completion name what the programs' help names.
//
//   manual_test SPINDLE-IMG SPINDLE-IO FILE...
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "gtest/gtest.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

using Lines = std::vector<std::string>;
using Names = std::set<std::string>;

std::string image_program;
std::string io_program;
Lines files;

std::string text_of(absl::string_view end_of_name) {
  for (const std::string& path : files) {
    if (!absl::EndsWith(path, end_of_name)) continue;
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  ADD_FAILURE() << "no file " << end_of_name;
  return {};
}

std::string output_of(const Lines& command) {
  const auto output = run_tool_ok(command);
  EXPECT_TRUE(output.ok()) << output.status();
  return output.ok() ? *output : "";
}

std::string joined(const Lines& words) { return absl::StrJoin(words, " "); }

// Each command of spindle-img, and the line that its help has about it.
std::map<std::string, std::string> image_commands() {
  std::map<std::string, std::string> commands;
  bool inside = false;
  for (const std::string& line :
       Lines(absl::StrSplit(output_of({image_program, "--help"}), '\n'))) {
    if (absl::StartsWith(line, "Command syntax:")) inside = true;
    if (absl::StartsWith(line, "Every command")) break;
    if (!inside || !absl::StartsWith(line, "  ")) continue;
    const Lines words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    std::string& usage = commands[words[0]];
    // A second line is about what QEMU does not have.
    absl::StrAppend(&usage, usage.empty() ? "" : " ",
                    usage.empty()
                        ? joined(words)
                        : joined(Lines(words.begin() + 1, words.end())));
  }
  return commands;
}

// The options in a text.
Names options_in(const std::string& text) {
  Names options;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool starts =
        text[i] == '-' &&
        (i == 0 || absl::StrContains(" [(|,", text.substr(i - 1, 1)));
    if (!starts) continue;
    size_t end = i;
    while (end < text.size() &&
           (text[end] == '-' || absl::ascii_isalnum(text[end]))) {
      ++end;
    }
    const std::string option = text.substr(i, end - i);
    if (absl::ascii_isalpha(option.back())) options.insert(option);
    i = end;
  }
  return options;
}

// A line of a manual page as it is read.
std::string plain(absl::string_view line) {
  for (const char* macro : {".B ", ".BR ", ".I "}) {
    if (absl::ConsumePrefix(&line, macro)) break;
  }
  return absl::StrReplaceAll(
      line,
      {{"\\-", "-"}, {"\\fI", ""}, {"\\fR", ""}, {"\"", ""}, {"\\(dq", "\""}});
}

// What stands in the section `.SH title`.
Lines section(const std::string& page, const std::string& title) {
  Lines lines;
  bool inside = false;
  for (const std::string& line : Lines(absl::StrSplit(page, '\n'))) {
    if (absl::StartsWith(line, ".SH ")) {
      inside = line == ".SH " + title;
    } else if (inside) {
      lines.push_back(line);
    }
  }
  EXPECT_FALSE(lines.empty()) << title;
  return lines;
}

// What bash proposes for the last of `words`.
Names proposals(const std::string& program, const Lines& words) {
  const std::string name = program.substr(program.rfind('/') + 1);
  const std::string function =
      absl::StrCat("_", absl::StrReplaceAll(name, {{"-", "_"}}));
  std::string script;
  for (const std::string& path : files) {
    if (absl::EndsWith(path, "completion/" + name))
      absl::StrAppend(&script, ". '", path, "'\n");
  }
  absl::StrAppend(&script, "COMP_WORDS=(", program);
  for (const std::string& word : words)
    absl::StrAppend(&script, " '", word, "'");
  absl::StrAppend(&script, ")\nCOMP_CWORD=", words.size(), "\n", function, " ",
                  program, "\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n");
  const Lines lines = absl::StrSplit(output_of({"bash", "-c", script}), '\n',
                                     absl::SkipEmpty());
  return Names(lines.begin(), lines.end());
}

TEST(ManualTest, ImagePageHasEveryCommandWithItsOptions) {
  const auto commands = image_commands();
  ASSERT_EQ(commands.size(), 15u);
  std::map<std::string, std::string> found;
  std::string command;
  bool in_usage = false;
  for (const std::string& line :
       section(text_of("spindle-img.1"), "COMMANDS")) {
    if (absl::StartsWith(line, ".SS ")) {
      command = line.substr(4);
    } else if (line == ".HP" || line == ".IP") {
      in_usage = line == ".HP";
    } else if (in_usage) {
      absl::StrAppend(&found[command], found[command].empty() ? "" : " ",
                      plain(line));
    } else {
      // What the text is about is an option of this command.
      const Names known = options_in(commands.at(command));
      for (const std::string& option : options_in(plain(line)))
        EXPECT_TRUE(known.count(option) != 0) << command << ": " << option;
    }
  }
  EXPECT_EQ(found, commands);
}

TEST(ManualTest, ImagePageHasTheStandardOptions) {
  Names in_page;
  for (const std::string& line :
       section(text_of("spindle-img.1"), "STANDARD OPTIONS")) {
    in_page.merge(options_in(plain(line)));
  }
  Names in_help;
  for (const std::string& line :
       Lines(absl::StrSplit(output_of({image_program, "--help"}), '\n'))) {
    if (absl::StartsWith(line, "    '"))
      in_help.merge(options_in(absl::StrReplaceAll(line, {{"'", " "}})));
  }
  EXPECT_EQ(in_page, in_help);
}

TEST(ManualTest, IoPageHasEveryOption) {
  const auto labels = [](const Lines& lines) {
    Lines found;
    for (size_t i = 0; i + 1 < lines.size(); ++i) {
      if (lines[i] == ".TP") found.push_back(plain(lines[i + 1]));
    }
    return found;
  };
  Lines in_help;
  for (const std::string& line :
       Lines(absl::StrSplit(output_of({io_program, "--help"}), '\n'))) {
    // "  -c, --cmd COMMAND      run this"
    const absl::string_view label =
        absl::StripAsciiWhitespace(absl::string_view(line).substr(0, 24));
    if (absl::StartsWith(line, "  ") && absl::StartsWith(label, "-"))
      in_help.emplace_back(label);
  }
  const std::string page = text_of("spindle-io.1");
  EXPECT_GT(in_help.size(), 15u);
  EXPECT_EQ(labels(section(page, "OPTIONS")), in_help);

  Lines commands;
  for (const std::string& line :
       Lines(absl::StrSplit(output_of({io_program, "-c", "help"}), '\n'))) {
    const size_t end = line.find(" -- ");
    if (end == std::string::npos) continue;
    commands.push_back(
        joined(absl::StrSplit(line.substr(0, end), ' ', absl::SkipEmpty())));
  }
  EXPECT_GT(commands.size(), 20u);
  EXPECT_EQ(labels(section(page, "COMMANDS")), commands);
}

TEST(ManualTest, PagesAreWellFormed) {
  for (const char* page : {"spindle-img.1", "spindle-io.1"}) {
    for (const std::string& path : files) {
      if (!absl::EndsWith(path, page)) continue;
      const auto result =
          run_tool({"groff", "-man", "-Tutf8", "-ww", "-z", path});
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->exit_code, 0);
      EXPECT_EQ(result->output, "");
    }
  }
}

TEST(CompletionTest, ImageCommandsAndTheirOptions) {
  const auto commands = image_commands();
  Names names;
  for (const auto& [name, usage] : commands) {
    names.insert(name);
    Names options = options_in(usage);
    options.merge(Names{"--help", "--restrict"});
    EXPECT_EQ(proposals(image_program, {name, "-"}), options) << name;
  }
  EXPECT_EQ(proposals(image_program, {""}), names);
  EXPECT_EQ(proposals(image_program, {"co"}),
            (Names{"commit", "compare", "convert"}));
  EXPECT_EQ(proposals(image_program, {"-T", "x", "cr"}), Names{"create"});
  EXPECT_EQ(proposals(image_program, {"--re"}), Names{"--restrict"});
}

TEST(CompletionTest, ImageValues) {
  EXPECT_EQ(proposals(image_program, {"info", "-f", "qc"}),
            (Names{"qcow", "qcow2"}));
  EXPECT_EQ(proposals(image_program, {"map", "--output", "=", "j"}),
            Names{"json"});
  EXPECT_EQ(proposals(image_program, {"map", "--output", "="}),
            (Names{"human", "json"}));
  EXPECT_EQ(proposals(image_program, {"check", "-r", ""}),
            (Names{"all", "leaks"}));
  EXPECT_EQ(proposals(image_program, {"create", "-f", "qcow2", "-o", "lazy"}),
            Names{"lazy_refcounts="});
  EXPECT_EQ(
      proposals(image_program, {"convert", "-O", "qcow2", "-o", "compat,clu"}),
      Names{"compat,cluster_size="});
  EXPECT_EQ(proposals(image_program, {"amend", "-f", "qcow2", "-o", "lazy"}),
            Names{"lazy_refcounts="});
  EXPECT_EQ(proposals(image_program, {"bench", "-o", ""}), Names{});
  EXPECT_EQ(proposals(image_program, {"info", ""}), Names{});  // files
}

TEST(CompletionTest, IoOptionsAndCommands) {
  Names in_help;
  for (const std::string& line :
       Lines(absl::StrSplit(output_of({io_program, "--help"}), '\n'))) {
    if (absl::StartsWith(line, "  "))
      in_help.merge(options_in(line.substr(0, 24)));
  }
  EXPECT_EQ(proposals(io_program, {"-"}), in_help);
  EXPECT_EQ(proposals(io_program, {"-c", "aio_"}),
            (Names{"aio_flush", "aio_read", "aio_write"}));
  EXPECT_EQ(proposals(io_program, {"--cache", "=", "un"}), Names{"unsafe"});
  EXPECT_EQ(proposals(io_program, {"disk", ""}), Names{});
}

}  // namespace
}  // namespace spindle::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc < 3) return 2;
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i)
    paths.push_back(std::filesystem::absolute(argv[i]).string());
  spindle::testing::image_program = paths[0];
  spindle::testing::io_program = paths[1];
  spindle::testing::files.assign(paths.begin() + 2, paths.end());
  return RUN_ALL_TESTS();
}

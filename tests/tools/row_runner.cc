#include "tests/tools/row_runner.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <regex>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "tests/support/file_difference.h"
#include "tests/support/qemu_tools.h"

namespace spindle::testing {
namespace {

namespace fs = std::filesystem;

// How the line begins that follows what each command prints.
constexpr char kExitStatus[] = "[exit status";

// The first line in which two texts differ, of both.
std::string first_difference(const std::string& expected,
                             const std::string& found) {
  const std::vector<std::string> a = absl::StrSplit(expected, '\n');
  const std::vector<std::string> b = absl::StrSplit(found, '\n');
  size_t i = 0;
  while (i < a.size() && i < b.size() && a[i] == b[i]) ++i;
  const auto line = [i](const std::vector<std::string>& lines) {
    return i < lines.size() ? absl::StrCat("\"", lines[i], "\"") : "(no more)";
  };
  return absl::StrCat("line ", i + 1, "\n    qemu: ", line(a),
                      "\n    ours: ", line(b));
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::recursive_directory_iterator(folder, error))
    names.insert(fs::relative(entry.path(), folder, error).string());
  return names;
}

// Without what no two runs have in common: how fast qemu-io was.
std::string without_rates(const std::string& text) {
  static const auto* const rate = new std::regex(
      "( ops; )[0-9:.]+(?: sec)? \\([^)]*/sec and [0-9.]+ ops/sec\\)");
  static const auto* const numbers =
      new std::regex("(^|\n)([0-9]+,[0-9]+,)[0-9:.]+,[0-9.]+,[0-9.]+(?=\n)");
  return std::regex_replace(std::regex_replace(text, *rate, "$1(rate)"),
                            *numbers, "$1$2(rate)");
}

std::string with_lines_sorted(const std::string& text) {
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  std::sort(lines.begin(), lines.end());
  return absl::StrJoin(lines, "\n");
}

absl::StatusOr<std::string> describe_check(const std::string& path) {
  auto result = run_tool({"qemu-img", "check", path});
  if (!result.ok()) return result.status();
  return absl::StrCat(result->exit_code, " ",
                      result->exit_code == 0 ? "" : result->output);
}

// What `qemu-img map` says without where things lie.  It begins an entry where
// the next cluster lies elsewhere, too: entries of one kind that follow each
// other are one.
std::string kinds_in_map(const std::string& map) {
  static const auto* const entry = new std::regex(
      "\\{ \"start\": ([0-9]+), \"length\": ([0-9]+), (.*?)"
      "(?:, \"offset\": [0-9]+)?\\}");
  std::string kinds;
  std::string last;
  uint64_t end = 0;
  for (std::sregex_iterator i(map.begin(), map.end(), *entry), none; i != none;
       ++i) {
    const uint64_t start = std::stoull((*i)[1]);
    // Data in a hole of the file is data.
    const std::string kind = absl::StrReplaceAll(
        (*i)[3].str(), {{"\"zero\": true, \"data\": true",
                         "\"zero\": false, \"data\": true"}});
    if (start != end || kind != last) {
      if (end != 0) absl::StrAppend(&kinds, end, "\n");
      absl::StrAppend(&kinds, kind, " from ", start, " to ");
    }
    end = start + std::stoull((*i)[2]);
    last = kind;
  }
  return kinds.empty() ? map : absl::StrCat(kinds, end, "\n");
}

}  // namespace

RowRunner::RowRunner(const RowFile* file,
                     const std::vector<std::string>& programs)
    : file_(*file), roots_{tmpfs_path("rows"), temporary_path("rows")} {
  std::error_code error;
  for (const std::string& root : roots_) fs::create_directories(root, error);
  links_ = absl::StrCat(roots_[0], "/bin");
  fs::create_directories(links_, error);
  const char* const names[] = {"qemu-img", "qemu-io"};
  for (size_t i = 0; i < programs.size() && i < 2; ++i) {
    fs::create_symlink(fs::absolute(programs[i], error),
                       absl::StrCat(links_, "/", names[i]), error);
  }
}

RowRunner::~RowRunner() {
  std::error_code error;
  for (const std::string& root : roots_) fs::remove_all(root, error);
}

absl::StatusOr<RowRunner::Outcome> RowRunner::run_shell(
    const std::string& folder, Side side, const std::string& script) {
  const std::string path =
      side == Side::kOurs ? absl::StrCat("PATH=", links_, ":$PATH\n") : "";
  // Bazel lets nobody write to /var/tmp.
  const std::string temporary_folder = "export TMPDIR=\"$PWD\"\n";
  auto result = run_tool_apart({"/bin/sh", "-c",
                                absl::StrCat("cd '", folder, "' || exit 99\n",
                                             path, temporary_folder, script)});
  if (!result.ok()) return result.status();
  return Outcome{result->exit_code, std::move(result->output),
                 std::move(result->errors)};
}

absl::StatusOr<std::string> RowRunner::fixture(const std::string& name,
                                               bool on_disk) {
  const std::string folder =
      absl::StrCat(roots_[on_disk ? 1 : 0], "/fixture-", name);
  if (!fixtures_.insert(folder).second) return folder;
  std::error_code error;
  fs::create_directories(folder, error);
  const std::string script =
      absl::StrCat("set -e\n", absl::StrJoin(file_.fixtures.at(name), "\n"));
  const auto outcome = run_shell(folder, Side::kQemu, script);
  if (!outcome.ok()) return outcome.status();
  if (outcome->exit_code == 0) return folder;
  return absl::InternalError(
      absl::StrCat("fixture ", name, ": ", outcome->output, outcome->errors));
}

absl::Status RowRunner::prepare(const Row& row, const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  std::string script = "set -e\n";
  for (const std::string& name : row.fixtures) {
    const absl::StatusOr<std::string> files = fixture(name, row.on_disk);
    if (!files.ok()) return files.status();
    absl::StrAppend(&script, "cp -a '", *files, "/.' .\n");
  }
  absl::StrAppend(&script, absl::StrJoin(row.preparations, "\n"), "\n");
  const auto outcome = run_shell(folder, Side::kQemu, script);
  if (!outcome.ok()) return outcome.status();
  if (outcome->exit_code == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("preparation: ", outcome->output, outcome->errors));
}

absl::StatusOr<RowRunner::Outcome> RowRunner::run_commands(
    const Row& row, Side side, const std::string& folder) {
  std::string script;
  for (const std::string& command : row.commands)
    absl::StrAppend(&script, command, "\necho \"", kExitStatus, " $?]\"\n");
  absl::StatusOr<Outcome> outcome = run_shell(folder, side, script);
  if (!outcome.ok()) return outcome;
  outcome->output = without_rates(outcome->output);
  if (row.in_any_order) outcome->output = with_lines_sorted(outcome->output);
  return outcome;
}

void RowRunner::compare_text(const Row& row, const std::string& what,
                             const std::string& expected,
                             const std::string& found) {
  const bool may_differ = row.differences.count(what) != 0;
  if (expected == found) {
    if (may_differ) complain(absl::StrCat(what, " is the same"));
  } else if (!may_differ) {
    complain(
        absl::StrCat(what, " differs in ", first_difference(expected, found)));
  }
}

void RowRunner::compare_content(const std::string& name, bool placement,
                                const std::string& expected,
                                const std::string& found) {
  // Formats are guessed: rows do not name them.
  const auto compared = run_tool({"qemu-img", "compare", expected, found});
  if (!compared.ok() || compared->exit_code != 0) {
    complain(absl::StrCat(name, ": ",
                          compared.ok() ? compared->output : "qemu-img fails"));
  }
  const auto check_a = describe_check(expected);
  const auto check_b = describe_check(found);
  if (!check_a.ok() || !check_b.ok() || *check_a != *check_b) {
    complain(absl::StrCat(name, ": check says ",
                          check_b.ok() ? *check_b : "nothing", " and not ",
                          check_a.ok() ? *check_a : "nothing"));
  }
  const auto map_of = [&](const std::string& path) {
    auto output = run_tool_ok({"qemu-img", "map", "--output=json", path});
    return output.ok() ? *output : output.status().ToString();
  };
  const std::string map_a =
      placement ? map_of(expected) : kinds_in_map(map_of(expected));
  const std::string map_b =
      placement ? map_of(found) : kinds_in_map(map_of(found));
  if (map_a != map_b)
    complain(absl::StrCat(name, ": map differs in ",
                          first_difference(map_a, map_b)));
}

void RowRunner::compare_file(const Row& row, const std::string& name,
                             const std::string& expected,
                             const std::string& found) {
  struct stat a = {};
  struct stat b = {};
  if (::lstat(expected.c_str(), &a) != 0 || ::lstat(found.c_str(), &b) != 0)
    return complain(absl::StrCat(name, ": cannot be looked at"));
  if ((a.st_mode & S_IFMT) != (b.st_mode & S_IFMT) ||
      (a.st_mode & 07777) != (b.st_mode & 07777)) {
    return complain(absl::StrCat(name, ": another kind or mode of file"));
  }
  if (!S_ISREG(a.st_mode)) return;
  if (row.compare_usage && a.st_blocks != b.st_blocks) {
    complain(absl::StrCat(name, ": takes ", b.st_blocks, " sectors, QEMU's ",
                          a.st_blocks));
  }
  const auto rule = row.comparisons.find(name);
  if (rule == row.comparisons.end()) {
    const std::string difference = find_file_difference(expected, found);
    if (!difference.empty()) complain(absl::StrCat(name, ": ", difference));
  } else if (rule->second != FileComparison::kIgnored) {
    compare_content(name, rule->second == FileComparison::kPlacement, expected,
                    found);
  }
}

void RowRunner::compare_files(const Row& row, const std::string& expected,
                              const std::string& found) {
  const std::set<std::string> names = names_in(expected);
  const std::set<std::string> ours = names_in(found);
  compare_text(row, "files", absl::StrJoin(names, "\n"),
               absl::StrJoin(ours, "\n"));
  for (const std::string& name : names) {
    if (ours.count(name) == 0) continue;
    compare_file(row, name, absl::StrCat(expected, "/", name),
                 absl::StrCat(found, "/", name));
  }
}

// No difference in these is intended.
void RowRunner::compare_exit_codes(const std::string& expected,
                                   const std::string& found) {
  const auto codes = [](const std::string& output) {
    std::string lines;
    for (const absl::string_view line : absl::StrSplit(output, '\n')) {
      if (absl::StartsWith(line, kExitStatus))
        absl::StrAppend(&lines, line, "\n");
    }
    return lines;
  };
  const std::string a = codes(expected);
  const std::string b = codes(found);
  if (a != b)
    complain(absl::StrCat("exit statuses differ in ", first_difference(a, b)));
}

std::vector<std::string> RowRunner::run(const Row& row) {
  complaints_.clear();
  const std::string root =
      absl::StrCat(roots_[row.on_disk ? 1 : 0], "/row-", row.line);
  // The folders are called alike: messages may say where they are.
  const std::string folders[2] = {absl::StrCat(root, "/qemu/here"),
                                  absl::StrCat(root, "/ours/here")};
  const std::string start = absl::StrCat(root, "/start/here");
  std::error_code error;
  const auto work = [&]() -> absl::Status {
    absl::Status status = prepare(row, start);
    if (!status.ok()) return status;
    // Both are copies: one may take less space than what was written.
    for (const std::string& folder : folders) {
      fs::create_directories(fs::path(folder).parent_path(), error);
      const auto copied = run_tool_ok({"cp", "-a", start, folder});
      if (!copied.ok()) return copied.status();
    }
    const auto expected = run_commands(row, Side::kQemu, folders[0]);
    if (!expected.ok()) return expected.status();
    const auto found = run_commands(row, Side::kOurs, folders[1]);
    if (!found.ok()) return found.status();
    compare_exit_codes(expected->output, found->output);
    compare_text(row, "stdout", expected->output, found->output);
    compare_text(row, "stderr", expected->errors, found->errors);
    compare_files(row, folders[0], folders[1]);
    return absl::OkStatus();
  };
  const absl::Status status = work();
  if (!status.ok()) complain(status.ToString());
  if (complaints_.empty() || std::getenv("SPINDLE_KEEP") == nullptr)
    fs::remove_all(root, error);
  return complaints_;
}

}  // namespace spindle::testing

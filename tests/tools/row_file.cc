#include "tests/tools/row_file.h"

#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace spindle::testing {
namespace {

// "word rest", if `line` begins with `word`.
bool take_word(absl::string_view word, absl::string_view line,
               std::string* rest) {
  if (!absl::StartsWith(line, word)) return false;
  const absl::string_view behind = line.substr(word.size());
  if (!behind.empty() && behind[0] != ' ') return false;
  *rest = std::string(absl::StripAsciiWhitespace(behind));
  return true;
}

class Reader {
 public:
  absl::Status read_line(int number, absl::string_view line);
  RowFile take() { return std::move(file_); }

 private:
  absl::Status fail(absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat("line ", number_, ": ", what));
  }
  absl::Status begin(absl::string_view line);
  absl::Status add_to_row(absl::string_view line);
  absl::Status add_difference(const std::string& text);

  RowFile file_;
  std::set<std::string> names_;
  std::vector<std::string>* fixture_ = nullptr;
  Row* row_ = nullptr;
  int number_ = 0;
};

absl::Status Reader::read_line(int number, absl::string_view line) {
  number_ = number;
  const absl::string_view text = absl::StripAsciiWhitespace(line);
  if (text.empty() || text[0] == '#') return absl::OkStatus();
  if (line[0] != ' ') return begin(text);
  if (fixture_ != nullptr) {
    fixture_->emplace_back(text);
    return absl::OkStatus();
  }
  return row_ != nullptr ? add_to_row(text) : fail("belongs to nothing");
}

absl::Status Reader::begin(absl::string_view line) {
  std::string name;
  fixture_ = nullptr;
  row_ = nullptr;
  if (take_word("fixture", line, &name)) {
    fixture_ = &file_.fixtures[name];
    return fixture_->empty() ? absl::OkStatus() : fail("there is one already");
  }
  if (!take_word("row", line, &name))
    return fail("neither 'fixture' nor 'row'");
  if (!names_.insert(name).second) return fail("there is such a row already");
  row_ = &file_.rows.emplace_back();
  row_->name = std::move(name);
  row_->line = number_;
  return absl::OkStatus();
}

absl::Status Reader::add_difference(const std::string& text) {
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(text, absl::MaxSplits(' ', 1));
  if (parts.first != "stdout" && parts.first != "stderr" &&
      parts.first != "files") {
    return fail("only stdout, stderr and files may differ");
  }
  if (parts.second.empty()) return fail("a difference needs its reason");
  row_->differences[parts.first] = parts.second;
  return absl::OkStatus();
}

absl::Status Reader::add_to_row(absl::string_view line) {
  std::string rest;
  if (take_word("given", line, &rest)) {
    if (file_.fixtures.count(rest) == 0) return fail("no such fixture above");
    row_->fixtures.push_back(rest);
  } else if (take_word("prepare", line, &rest)) {
    row_->preparations.push_back(rest);
  } else if (take_word("content", line, &rest)) {
    row_->comparisons[rest] = FileComparison::kContent;
  } else if (take_word("placed", line, &rest)) {
    row_->comparisons[rest] = FileComparison::kPlacement;
  } else if (take_word("ignore", line, &rest)) {
    row_->comparisons[rest] = FileComparison::kIgnored;
  } else if (take_word("usage", line, &rest) && rest.empty()) {
    row_->compare_usage = true;
  } else if (take_word("disk", line, &rest) && rest.empty()) {
    row_->on_disk = true;
  } else if (take_word("sorted", line, &rest) && rest.empty()) {
    row_->in_any_order = true;
  } else if (take_word("differs", line, &rest)) {
    return add_difference(rest);
  } else {
    row_->commands.emplace_back(line);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RowFile> parse_row_file(absl::string_view text) {
  Reader reader;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    absl::Status status = reader.read_line(++number, line);
    if (!status.ok()) return status;
  }
  RowFile file = reader.take();
  for (const Row& row : file.rows) {
    if (row.commands.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", row.line, ": the row runs nothing"));
    }
  }
  return file;
}

}  // namespace spindle::testing

// IoInput at a terminal, with libedit.
#include <errno.h>
#include <histedit.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cstdio>
#include <cstring>
#include <cwchar>
#include <utility>

#include "absl/strings/match.h"
#include "tools/io_input.h"

namespace spindle {
namespace {

constexpr int kHistoryLines = 500;
// What the key ^R is bound to: draws the line anew.
constexpr wchar_t kRedisplayKey = L'\x12';
constexpr int kScreenColumns = 80;

class TerminalInput final : public IoInput {
 public:
  TerminalInput(std::string prompt, std::vector<std::string> words,
                Background background);
  ~TerminalInput() override {
    ::el_end(line_);
    ::history_end(history_);
  }
  TerminalInput(const TerminalInput&) = delete;
  TerminalInput& operator=(const TerminalInput&) = delete;

  std::optional<std::string> next_line() override;

 private:
  static TerminalInput* of(EditLine* line) {
    void* self = nullptr;
    ::el_get(line, EL_CLIENTDATA, &self);
    return static_cast<TerminalInput*>(self);
  }
  int read_character(wchar_t* character);
  unsigned char complete();
  void list(const std::vector<absl::string_view>& matches) const;

  std::string prompt_;
  const std::vector<std::string> words_;
  const Background background_;
  EditLine* const line_;
  History* const history_;
};

TerminalInput::TerminalInput(std::string prompt, std::vector<std::string> words,
                             Background background)
    : prompt_(std::move(prompt)),
      words_(std::move(words)),
      background_(std::move(background)),
      line_(::el_init("spindle-io", stdin, stdout, stderr)),
      history_(::history_init()) {
  std::setlocale(LC_CTYPE, "");
  HistEvent event;
  ::history(history_, &event, H_SETSIZE, kHistoryLines);
  ::history(history_, &event, H_SETUNIQUE, 1);
  ::el_set(line_, EL_CLIENTDATA, static_cast<void*>(this));
  ::el_set(line_, EL_HIST, ::history, history_);
  ::el_set(line_, EL_EDITOR, "emacs");
  // The terminal is put back when a signal ends the program.
  ::el_set(line_, EL_SIGNAL, 1);
  ::el_set(
      line_, EL_PROMPT,
      +[](EditLine* line) { return of(line)->prompt_.data(); });
  ::el_set(
      line_, EL_GETCFN, +[](EditLine* line, wchar_t* character) {
        return of(line)->read_character(character);
      });
  ::el_set(
      line_, EL_ADDFN, "complete-command", "completes a command's name",
      +[](EditLine* line, int) { return of(line)->complete(); });
  // Also where a line has been typed.
  ::el_set(
      line_, EL_ADDFN, "end-input", "ends the input",
      +[](EditLine*, int) { return static_cast<unsigned char>(CC_EOF); });
  ::el_set(line_, EL_BIND, "^I", "complete-command", nullptr);
  ::el_set(line_, EL_BIND, "^D", "end-input", nullptr);
  ::el_set(line_, EL_BIND, "^R", "ed-redisplay", nullptr);
}

std::optional<std::string> TerminalInput::next_line() {
  int length = 0;
  const char* const text = ::el_gets(line_, &length);
  if (text == nullptr || length <= 0) {
    std::printf("\n");
    return std::nullopt;
  }
  std::string line(text, static_cast<size_t>(length));
  if (line.back() == '\n') line.pop_back();
  HistEvent event;
  if (line.find_first_not_of(' ') != std::string::npos)
    ::history(history_, &event, H_ENTER, line.c_str());
  return line;
}

// As libedit wants it: 1, or 0 at the end, or -1.
int TerminalInput::read_character(wchar_t* character) {
  std::mbstate_t state = {};
  for (;;) {
    // What was printed meanwhile stands where the line was.
    if (wait_for_input(background_)) {
      *character = kRedisplayKey;
      return 1;
    }
    char byte = 0;
    const ssize_t count = ::read(STDIN_FILENO, &byte, 1);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return static_cast<int>(count);
    const size_t used = std::mbrtowc(character, &byte, 1, &state);
    if (used == static_cast<size_t>(-2)) continue;  // there is more of it
    if (used <= 1) return 1;
    state = {};  // not a character
  }
}

unsigned char TerminalInput::complete() {
  const LineInfo* const info = ::el_line(line_);
  const absl::string_view typed(
      info->buffer, static_cast<size_t>(info->cursor - info->buffer));
  std::vector<absl::string_view> matches;
  for (const std::string& word : words_) {
    if (absl::StartsWith(word, typed)) matches.push_back(word);
  }
  if (matches.empty()) return CC_ERROR;
  if (matches.size() == 1) {
    const std::string rest(matches[0].substr(typed.size()));
    ::el_insertstr(line_, (rest + " ").c_str());
    return CC_REFRESH;
  }
  size_t common = matches[0].size();
  for (const absl::string_view match : matches) {
    const auto differs = std::mismatch(matches[0].begin(), matches[0].end(),
                                       match.begin(), match.end());
    common = std::min(common,
                      static_cast<size_t>(differs.first - matches[0].begin()));
  }
  if (common > typed.size()) {
    const std::string rest(
        matches[0].substr(typed.size(), common - typed.size()));
    ::el_insertstr(line_, rest.c_str());
    return CC_REFRESH;
  }
  list(matches);
  return CC_REDISPLAY;
}

void TerminalInput::list(const std::vector<absl::string_view>& matches) const {
  size_t width = 0;
  for (const absl::string_view match : matches)
    width = std::max(width, match.size() + 2);
  const size_t columns = std::max<size_t>(1, kScreenColumns / width);
  std::printf("\n");
  for (size_t i = 0; i < matches.size(); ++i) {
    const bool ends = (i + 1) % columns == 0 || i + 1 == matches.size();
    std::printf("%-*.*s%s", static_cast<int>(width),
                static_cast<int>(matches[i].size()), matches[i].data(),
                ends ? "\n" : "");
  }
  std::fflush(stdout);
}

}  // namespace

std::unique_ptr<IoInput> create_terminal_input(const std::string& prompt,
                                               std::vector<std::string> words,
                                               IoInput::Background background) {
  return std::make_unique<TerminalInput>(prompt, std::move(words),
                                         std::move(background));
}

}  // namespace spindle

#include "tests/support/terminal_screen.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"

namespace spindle::testing {

void TerminalScreen::print(absl::string_view bytes) {
  for (const char byte : bytes) {
    if (in_sequence_) {
      if (byte >= '@' && byte <= '~') {
        in_sequence_ = false;
        print_final(byte);
      } else {
        parameters_.push_back(byte);
      }
    } else if (in_escape_) {
      in_escape_ = false;
      in_sequence_ = byte == '[';
      parameters_.clear();
    } else {
      print_plain(byte);
    }
  }
}

void TerminalScreen::print_plain(char byte) {
  switch (byte) {
    case '\x1b':
      in_escape_ = true;
      return;
    case '\r':
      column_ = 0;
      return;
    case '\n':
      if (++row_ == lines_.size()) lines_.emplace_back();
      return;
    case '\b':
      if (column_ > 0) --column_;
      return;
    default:
      if (static_cast<unsigned char>(byte) < ' ') return;
      if (line().size() <= column_) line().resize(column_ + 1, ' ');
      line()[column_++] = byte;
  }
}

void TerminalScreen::print_final(char byte) {
  int number = 0;
  const bool given = absl::SimpleAtoi(parameters_, &number);
  const auto count = static_cast<size_t>(std::max(given ? number : 1, 1));
  switch (byte) {
    case 'A':
      row_ -= std::min(row_, count);
      return;
    case 'C':
      column_ += count;
      return;
    case 'D':
      column_ -= std::min(column_, count);
      return;
    case 'J':  // everything from here on
      lines_.resize(row_ + 1);
      erase_line(0);
      return;
    case 'K':
      erase_line(given ? number : 0);
      return;
    case 'P':
      if (column_ < line().size()) line().erase(column_, count);
      return;
    case '@':
      if (column_ < line().size()) line().insert(column_, count, ' ');
      return;
    default:  // colours and modes
      return;
  }
}

void TerminalScreen::erase_line(int which) {
  if (which == 0) {
    if (column_ < line().size()) line().resize(column_);
  } else if (which == 1) {
    for (size_t i = 0; i < std::min(column_ + 1, line().size()); ++i)
      line()[i] = ' ';
  } else {
    line().clear();
  }
}

std::vector<std::string> TerminalScreen::lines() const {
  std::vector<std::string> trimmed = lines_;
  for (std::string& each : trimmed) {
    each.erase(std::find_if(each.rbegin(), each.rend(),
                            [](char byte) { return byte != ' '; })
                   .base(),
               each.end());
  }
  return trimmed;
}

}  // namespace spindle::testing

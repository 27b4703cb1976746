// TerminalScreen: what a terminal would show of what a program printed to it:
// as much of a vt100 as line editors use.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_SUPPORT_TERMINAL_SCREEN_H_
#define SPINDLE_TESTS_SUPPORT_TERMINAL_SCREEN_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace spindle::testing {

class TerminalScreen {
 public:
  // As printed; may end in the middle of a control sequence.
  void print(absl::string_view bytes);

  // All lines, also those that a real one would have scrolled away, without
  // spaces at their ends.
  std::vector<std::string> lines() const;
  size_t cursor_column() const { return column_; }

 private:
  void print_plain(char byte);
  void print_final(char byte);  // of a control sequence
  std::string& line() { return lines_[row_]; }
  void erase_line(int which);

  std::vector<std::string> lines_ = {""};
  size_t row_ = 0;
  size_t column_ = 0;
  bool in_escape_ = false;
  bool in_sequence_ = false;
  std::string parameters_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_TERMINAL_SCREEN_H_

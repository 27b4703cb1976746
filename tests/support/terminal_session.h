// TerminalSession: a program that runs at a terminal, and a person at it.
//
// Thread safety: one thread.
#ifndef SPINDLE_TESTS_SUPPORT_TERMINAL_SESSION_H_
#define SPINDLE_TESTS_SUPPORT_TERMINAL_SESSION_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "tests/support/terminal_screen.h"

namespace spindle::testing {

class TerminalSession {
 public:
  // `arguments` begin with the program.  The terminal has 80 columns.
  static absl::StatusOr<std::unique_ptr<TerminalSession>> start(
      const std::vector<std::string>& arguments);
  // Ends the program if it still runs.
  ~TerminalSession();
  TerminalSession(const TerminalSession&) = delete;
  TerminalSession& operator=(const TerminalSession&) = delete;

  // When the program reads single keys: it shows its prompt a moment before
  // that, and what is typed in between is echoed by the terminal.
  void type(absl::string_view keys);
  // Until, after what was typed last, `text` stands on the last line that is
  // not empty.  False after a minute without it.
  bool wait_for_last_line(absl::string_view text);
  // Until some line has `text` in it.  False after a minute without it.
  bool wait_for_text(absl::string_view text);
  // What waitpid() says; waits until the program has ended.
  int wait_for_end();

  const TerminalScreen& screen() const { return screen_; }

 private:
  TerminalSession(pid_t child, int fd) : child_(child), fd_(fd) {}
  // False at the end, or if nothing came in that time.
  bool read_some(absl::Duration patience);
  // Reads until `is_there` says so.  False after a minute.
  bool read_until(absl::FunctionRef<bool()> is_there);
  std::string last_line() const;
  void wait_until_keys_are_read() const;

  const pid_t child_;
  const int fd_;
  bool has_ended_ = false;
  TerminalScreen screen_;
  // As it was before the last keys.
  size_t line_count_before_ = 0;
  std::string last_line_before_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_TERMINAL_SESSION_H_

// Where spindle-io's commands come from when no -c gives them: a terminal, with
// line editing, history and completion, or whatever standard input is.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_IO_INPUT_H_
#define SPINDLE_TOOLS_IO_INPUT_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace spindle {

class IoInput {
 public:
  // What happens besides while a line is awaited.
  struct Background {
    // Becomes readable when there is something to do; -1: nothing to wait for.
    std::function<int()> event_fd;
    std::function<void()> handle;
  };

  // Reads descriptor 0 and prints `prompt` on standard output.
  // `words` are what the first word of a line is completed to.
  static std::unique_ptr<IoInput> create(const std::string& prompt,
                                         std::vector<std::string> words,
                                         Background background);
  virtual ~IoInput() = default;

  // The next line without its end; nothing at the end of the input.
  virtual std::optional<std::string> next_line() = 0;

 protected:
  IoInput() = default;
};

// Waits until descriptor 0 can be read, or there is something else to do; does
// that, and returns true if it was that.
bool wait_for_input(const IoInput::Background& background);

// A terminal's.
std::unique_ptr<IoInput> create_terminal_input(const std::string& prompt,
                                               std::vector<std::string> words,
                                               IoInput::Background background);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_INPUT_H_

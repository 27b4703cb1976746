// What the command-line tools have in common: messages, sizes for people,
// "-o" lists.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_CLI_TEXT_H_
#define SPINDLE_TOOLS_CLI_TEXT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"
#include "engine/option_list.h"

namespace spindle {

// The name that messages begin with is the one that the program was called by,
// without its folder; until main() says so, "spindle-img".  Not thread-safe.
void set_program_name(absl::string_view argv0);
const std::string& program_name();

// "<program>: <message>" on standard error, and where there is more to say, a
// line that begins with "hint: " (hints.h); returns the exit code 1.
int fail_as(absl::string_view program, absl::string_view message);
int fail(absl::string_view message);
// "<program>: warning: <message>" on standard error.
void warn(absl::string_view message);
// "<program>: Could not open '<filename>': <qemu_words() of status>".
int fail_to_open(absl::string_view filename, const absl::Status& status);

// "64 KiB", "1.5 GiB": three significant digits.
std::string human_size(uint64_t bytes);

// A size below 2^63, or why it is none.
struct SizeArgument {
  std::optional<uint64_t> value;
  bool too_large = false;
};
SizeArgument parse_size_argument(absl::string_view text);

// A size that the user gave for `what` ("image size").  Errors: QEMU's two
// messages.
absl::StatusOr<uint64_t> parse_size_named(absl::string_view what,
                                          absl::string_view text);
absl::StatusOr<uint64_t> parse_image_size(absl::string_view text);

// A size on the command line; the messages, QEMU's, call it `name`.
absl::StatusOr<uint64_t> parse_size_parameter(absl::string_view name,
                                              absl::string_view text);

// "a=1,b=2" with ",," for a comma in a value.  A name alone means "on"; "help"
// or "?" asks for help.
struct OptionList {
  std::vector<std::pair<std::string, std::string>> options;  // in order
  bool help = false;
};
OptionList parse_option_list(absl::string_view text);

// How the tools open an image: clusters are taken where QEMU takes them.
OpenOptions tool_open_options();

// "  name=<type>  - help" for each.
std::string describe_options(const std::vector<OptionHelp>& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_CLI_TEXT_H_

// The commands of spindle-io: a table, and how a line becomes a call.
//
// A new command is a function and an entry in one of the tables below.
//
// Thread safety: one thread (getopt has state of its own).
#ifndef SPINDLE_TOOLS_IO_COMMAND_H_
#define SPINDLE_TOOLS_IO_COMMAND_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tools/io_image.h"
#include "tools/io_session.h"

namespace spindle {

enum class IoOutcome { kDone, kFailed, kQuit };

struct IoCommand;

// One line, taken apart.  argv[0] is the command's name as it was given.
struct IoCall {
  const IoCommand* command;
  IoSession* session;
  IoImage* image;  // null if none is open
  int argc;
  char** argv;
};

struct IoCommand {
  static constexpr int kAnyCount = -1;

  const char* name;
  const char* short_name = nullptr;  // null: none
  int min_arguments = 0;
  int max_arguments = 0;  // kAnyCount: no limit
  bool needs_image = true;
  bool writes = false;
  const char* arguments = nullptr;  // "off len"; null: none
  const char* summary;
  const char* details = nullptr;  // lines for "help name"; null: none
  IoOutcome (*run)(IoCall& call);
};

absl::Span<const IoCommand> io_transfer_commands();
absl::Span<const IoCommand> io_aio_commands();
absl::Span<const IoCommand> io_inspect_commands();
absl::Span<const IoCommand> io_open_commands();
absl::Span<const IoCommand> io_break_commands();
absl::Span<const IoCommand> io_shell_commands();

// All of them, by name.
const std::vector<const IoCommand*>& all_io_commands();
// By its name, or its short one; null if there is none.
const IoCommand* find_io_command(absl::string_view name);

// Runs one line; an empty one does nothing.
IoOutcome run_io_line(const std::string& line, IoSession* session);

// "name arguments -- summary", under the name `shown`.
void print_usage(const IoCommand& command, const char* shown);
// The same, and kFailed: the arguments were not right.
IoOutcome show_usage(const IoCall& call);
// "<program>: <message>", and kFailed.
IoOutcome complain(absl::string_view message);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_COMMAND_H_

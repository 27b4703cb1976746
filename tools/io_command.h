// The commands of spindle-io: a table, and how a line becomes a call.
//
// A new command is a function and an entry in one of the tables below.
//
// Thread safety: one thread (getopt has state of its own).
#ifndef SPINDLE_TOOLS_IO_COMMAND_H_
#define SPINDLE_TOOLS_IO_COMMAND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "tools/io_image.h"

namespace spindle {

enum class IoOutcome { kDone, kFailed, kQuit };

struct IoCommand;

// One line, taken apart.  argv[0] is the command's name as it was given.
struct IoCall {
  const IoCommand* command;
  IoImage* image;  // null if none is open
  int argc;
  char** argv;
};

struct IoCommand {
  const char* name;
  const char* short_name;  // null: none
  int min_arguments;
  int max_arguments;  // kAnyCount: no limit
  bool needs_image;
  bool writes;
  const char* arguments;  // "off len"; empty: none
  const char* summary;    // half a sentence
  const char* details;    // lines for "help name"; null: none
  IoOutcome (*run)(IoCall& call);

  static constexpr int kAnyCount = -1;
};

absl::Span<const IoCommand> io_transfer_commands();
absl::Span<const IoCommand> io_aio_commands();
absl::Span<const IoCommand> io_inspect_commands();

// All of them, by name.
std::vector<const IoCommand*> all_io_commands();

// Runs one line; an empty one does nothing.  What asynchronous requests have
// finished by then is reported.
IoOutcome run_io_line(const std::string& line, IoImage* image);

// "name arguments -- summary", and kFailed: the arguments were not right.
IoOutcome show_usage(const IoCall& call);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_COMMAND_H_

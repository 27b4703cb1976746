// The commands of spindle-io that are about the program, not about an image.
#include <signal.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tools/io_command.h"
#include "tools/io_text.h"

namespace spindle {
namespace {

IoOutcome run_help(IoCall& call) {
  if (call.argc == 1) {
    for (const IoCommand* command : all_io_commands())
      print_usage(*command, command->name);
    std::printf("\nUse 'help commandname' for extended help.\n");
    return IoOutcome::kDone;
  }
  const IoCommand* command = find_io_command(call.argv[1]);
  if (command == nullptr) {
    std::printf("command %s not found\n", call.argv[1]);
    return IoOutcome::kFailed;
  }
  print_usage(*command, call.argv[1]);
  if (command->details != nullptr) std::printf("\n%s\n", command->details);
  return IoOutcome::kDone;
}

IoOutcome run_quit(IoCall&) { return IoOutcome::kQuit; }

// What is asynchronous goes on meanwhile, and is reported.
IoOutcome run_sleep(IoCall& call) {
  char* end = nullptr;
  const long milliseconds = std::strtol(call.argv[1], &end, 0);
  if (end == call.argv[1] || *end != '\0' || milliseconds < 0) {
    std::printf("%s is not a valid number\n", call.argv[1]);
    return IoOutcome::kFailed;
  }
  std::fflush(stdout);
  // Nobody means so many milliseconds.
  if (milliseconds == std::numeric_limits<long>::max()) return IoOutcome::kDone;
  const absl::Time end_time = absl::Now() + absl::Milliseconds(milliseconds);
  if (call.image != nullptr) call.image->collect_until(end_time);
  absl::SleepFor(end_time - absl::Now());
  return IoOutcome::kDone;
}

IoOutcome run_sigraise(IoCall& call) {
  const std::optional<uint64_t> signal = read_number(call.argv[1]);
  if (!signal.has_value()) return IoOutcome::kFailed;
  if (*signal > uint64_t{NSIG}) {
    std::printf("signal argument '%s' is too large to be a valid signal\n",
                call.argv[1]);
    return IoOutcome::kFailed;
  }
  std::fflush(stdout);
  ::raise(static_cast<int>(*signal));
  return IoOutcome::kDone;
}

IoOutcome run_abort(IoCall&) { std::abort(); }

constexpr char kSigraiseDetails[] =
    " The program sends the signal of this number to itself.\n"
    "\n"
    " \"sigraise 9\" ends it without another word.\n";

constexpr IoCommand kCommands[] = {
    {.name = "help",
     .short_name = "?",
     .max_arguments = 1,
     .needs_image = false,
     .arguments = "[command]",
     .summary = "help for one or all commands",
     .run = run_help},
    {.name = "quit",
     .short_name = "q",
     .max_arguments = IoCommand::kAnyCount,
     .needs_image = false,
     .summary = "exit the program",
     .run = run_quit},
    {.name = "sleep",
     .min_arguments = 1,
     .max_arguments = 1,
     .needs_image = false,
     .summary = "waits for the given value in milliseconds",
     .run = run_sleep},
    {.name = "sigraise",
     .min_arguments = 1,
     .max_arguments = 1,
     .needs_image = false,
     .arguments = "signal",
     .summary = "raises a signal",
     .details = kSigraiseDetails,
     .run = run_sigraise},
    {.name = "abort",
     .needs_image = false,
     .summary = "simulate a program crash using abort(3)",
     .run = run_abort},
};

}  // namespace

absl::Span<const IoCommand> io_shell_commands() { return kCommands; }

}  // namespace spindle

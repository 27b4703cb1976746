#include "tools/io_command.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

std::string usage_line(const IoCommand& command) {
  return absl::StrCat(command.name, *command.arguments == '\0' ? "" : " ",
                      command.arguments, " -- ", command.summary, "\n");
}

const IoCommand* find_command(absl::string_view name) {
  for (const IoCommand* command : all_io_commands()) {
    if (name == command->name ||
        (command->short_name != nullptr && name == command->short_name)) {
      return command;
    }
  }
  return nullptr;
}

IoOutcome run_help(IoCall& call) {
  if (call.argc == 1) {
    for (const IoCommand* command : all_io_commands())
      std::printf("%s", usage_line(*command).c_str());
    std::printf("\n\"help NAME\" says more about one of them.\n");
    return IoOutcome::kDone;
  }
  const IoCommand* command = find_command(call.argv[1]);
  if (command == nullptr) {
    std::printf("command %s not found\n", call.argv[1]);
    return IoOutcome::kFailed;
  }
  std::printf("%s", usage_line(*command).c_str());
  if (command->details != nullptr) std::printf("\n%s\n", command->details);
  return IoOutcome::kDone;
}

IoOutcome run_quit(IoCall&) { return IoOutcome::kQuit; }

IoOutcome run_sleep(IoCall& call) {
  char* end = nullptr;
  const long milliseconds = std::strtol(call.argv[1], &end, 0);
  if (end == call.argv[1] || *end != '\0' || milliseconds < 0) {
    std::printf("%s is not a valid number\n", call.argv[1]);
    return IoOutcome::kFailed;
  }
  std::fflush(stdout);
  absl::SleepFor(absl::Milliseconds(milliseconds));
  return IoOutcome::kDone;
}

constexpr IoCommand kShellCommands[] = {
    {.name = "help",
     .short_name = "?",
     .min_arguments = 0,
     .max_arguments = 1,
     .needs_image = false,
     .writes = false,
     .arguments = "[command]",
     .summary = "says what the commands do, or one of them",
     .details = nullptr,
     .run = run_help},
    {.name = "quit",
     .short_name = "q",
     .min_arguments = 0,
     .max_arguments = IoCommand::kAnyCount,
     .needs_image = false,
     .writes = false,
     .arguments = "",
     .summary = "ends the program",
     .details = nullptr,
     .run = run_quit},
    {.name = "sleep",
     .short_name = nullptr,
     .min_arguments = 1,
     .max_arguments = 1,
     .needs_image = false,
     .writes = false,
     .arguments = "milliseconds",
     .summary = "does nothing for so long",
     .details = nullptr,
     .run = run_sleep},
};

IoOutcome complain(const std::string& message) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", message.c_str());
  return IoOutcome::kFailed;
}

std::string wanted_count(const IoCommand& command) {
  if (command.max_arguments == IoCommand::kAnyCount)
    return absl::StrCat("at least ", command.min_arguments);
  if (command.min_arguments == command.max_arguments)
    return absl::StrCat(command.min_arguments);
  return absl::StrCat("between ", command.min_arguments, " and ",
                      command.max_arguments);
}

// kDone if the command may run.
IoOutcome check_call(const IoCall& call) {
  const IoCommand& command = *call.command;
  if (command.needs_image && call.image == nullptr)
    return complain("no file open, try 'help open'");
  const int count = call.argc - 1;
  if (count < command.min_arguments ||
      (command.max_arguments != IoCommand::kAnyCount &&
       count > command.max_arguments)) {
    return complain(absl::StrCat("bad argument count ", count, " to ",
                                 call.argv[0], ", expected ",
                                 wanted_count(command), " arguments"));
  }
  if (command.writes && call.image->target().read_only) {
    fail_as("spindle-io", "Block node is read-only");
    return IoOutcome::kFailed;
  }
  return IoOutcome::kDone;
}

}  // namespace

std::vector<const IoCommand*> all_io_commands() {
  std::vector<const IoCommand*> all;
  for (const auto& table :
       {absl::MakeConstSpan(kShellCommands), io_transfer_commands(),
        io_aio_commands(), io_inspect_commands()}) {
    for (const IoCommand& command : table) all.push_back(&command);
  }
  std::sort(all.begin(), all.end(), [](const IoCommand* a, const IoCommand* b) {
    return absl::string_view(a->name) < b->name;
  });
  return all;
}

IoOutcome run_io_line(const std::string& line, IoImage* image) {
  std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  if (words.empty()) return IoOutcome::kDone;
  // As getopt wants them.
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  IoCall call{.command = find_command(words[0]),
              .image = image,
              .argc = static_cast<int>(words.size()),
              .argv = argv.data()};
  if (call.command == nullptr)
    return complain(absl::StrCat("command \"", words[0], "\" not found"));
  IoOutcome outcome = check_call(call);
  if (outcome == IoOutcome::kDone) outcome = call.command->run(call);
  if (image != nullptr) image->collect_finished();
  return outcome;
}

IoOutcome show_usage(const IoCall& call) {
  std::printf("%s", usage_line(*call.command).c_str());
  return IoOutcome::kFailed;
}

}  // namespace spindle

#include "tools/io_command.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

std::vector<const IoCommand*> collect_commands() {
  std::vector<const IoCommand*> all;
  for (const auto& table :
       {io_shell_commands(), io_open_commands(), io_transfer_commands(),
        io_aio_commands(), io_inspect_commands(), io_break_commands()}) {
    for (const IoCommand& command : table) all.push_back(&command);
  }
  std::sort(all.begin(), all.end(), [](const IoCommand* a, const IoCommand* b) {
    return absl::string_view(a->name) < b->name;
  });
  return all;
}

// These messages do not begin with the program's name.
IoOutcome refuse(const std::string& message) {
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
    return refuse("no file open, try 'help open'");
  const int count = call.argc - 1;
  if (count < command.min_arguments ||
      (command.max_arguments != IoCommand::kAnyCount &&
       count > command.max_arguments)) {
    return refuse(absl::StrCat("bad argument count ", count, " to ",
                               call.argv[0], ", expected ",
                               wanted_count(command), " arguments"));
  }
  if (command.writes && call.image->device().read_only())
    return complain("Block node is read-only");
  return IoOutcome::kDone;
}

}  // namespace

const std::vector<const IoCommand*>& all_io_commands() {
  static const auto* const all =
      new std::vector<const IoCommand*>(collect_commands());
  return *all;
}

const IoCommand* find_io_command(absl::string_view name) {
  for (const IoCommand* command : all_io_commands()) {
    if (name == command->name ||
        (command->short_name != nullptr && name == command->short_name)) {
      return command;
    }
  }
  return nullptr;
}

IoOutcome run_io_line(const std::string& line, IoSession* session) {
  std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  if (words.empty()) return IoOutcome::kDone;
  // As getopt wants them.
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  IoCall call{.command = find_io_command(words[0]),
              .session = session,
              .image = session->image(),
              .argc = static_cast<int>(words.size()),
              .argv = argv.data()};
  if (call.command == nullptr)
    return refuse(absl::StrCat("command \"", words[0], "\" not found"));
  const IoOutcome may_run = check_call(call);
  return may_run == IoOutcome::kDone ? call.command->run(call) : may_run;
}

void print_usage(const IoCommand& command, const char* shown) {
  std::printf("%s", shown);
  if (command.arguments != nullptr) std::printf(" %s", command.arguments);
  std::printf(" -- %s\n", command.summary);
}

IoOutcome show_usage(const IoCall& call) {
  print_usage(*call.command, call.command->name);
  return IoOutcome::kFailed;
}

IoOutcome complain(absl::string_view message) {
  fail(message);
  return IoOutcome::kFailed;
}

}  // namespace spindle

// spindle-io: requests to an image, by hand.
#include <getopt.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/cache_mode.h"
#include "tools/cli_text.h"
#include "tools/io_command.h"
#include "tools/io_image.h"

namespace {

using spindle::IoImage;
using spindle::IoOutcome;

constexpr char kProgram[] = "spindle-io";

constexpr char kUsage[] =
    "Usage: spindle-io [OPTIONS]... [-c COMMAND]... [FILE]\n"
    "Requests to a disk image, by hand.\n"
    "\n"
    "  -c, --cmd COMMAND      run this; without any, lines of standard input\n"
    "  -f, --format FORMAT    the image's format; guessed if not stated\n"
    "  -r, --read-only        do not write to it\n"
    "  -s, --snapshot         writes are forgotten at the end\n"
    "  -n, --nocache          as -t none\n"
    "  -m, --misalign         buffers begin where direct I/O does not like it\n"
    "  -i, --aio MODE         threads, native, io_uring: all mean the pool\n"
    "  -t, --cache MODE       none, writeback, writethrough (default),\n"
    "                         directsync, unsafe\n"
    "  -d, --discard MODE     unmap (default), ignore\n"
    "  -U, --force-share      read it also while somebody else writes\n"
    "  -h, --help             this text\n"
    "  -V, --version          which version this is\n"
    "\n"
    "\"spindle-io -c help\" lists the commands.\n";

constexpr option kLongOptions[] = {
    {"cmd", required_argument, nullptr, 'c'},
    {"format", required_argument, nullptr, 'f'},
    {"read-only", no_argument, nullptr, 'r'},
    {"snapshot", no_argument, nullptr, 's'},
    {"nocache", no_argument, nullptr, 'n'},
    {"misalign", no_argument, nullptr, 'm'},
    {"aio", required_argument, nullptr, 'i'},
    {"cache", required_argument, nullptr, 't'},
    {"discard", required_argument, nullptr, 'd'},
    {"force-share", no_argument, nullptr, 'U'},
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, 'V'},
    {nullptr, 0, nullptr, 0},
};

struct Arguments {
  std::vector<std::string> commands;
  spindle::IoTarget target;
};

[[noreturn]] void leave(int code) {
  std::fflush(stdout);
  std::exit(code);
}

[[noreturn]] void refuse(const std::string& message) {
  leave(spindle::fail_as(kProgram, message));
}

spindle::CacheMode cache_mode(const std::string& name) {
  // "off" is an old name.
  const absl::StatusOr<spindle::CacheMode> mode =
      spindle::parse_cache_mode(name == "off" ? "none" : name);
  if (!mode.ok()) refuse(absl::StrCat("Invalid cache option: ", name));
  return *mode;
}

bool ignores_discards(absl::string_view name) {
  if (name == "ignore" || name == "off") return true;
  if (name != "unmap" && name != "on")
    refuse(absl::StrCat("Invalid discard option: ", name));
  return false;
}

void check_aio_mode(absl::string_view name) {
  if (name != "threads" && name != "native" && name != "io_uring")
    refuse(absl::StrCat("Invalid aio option: ", name));
}

Arguments read_arguments(int argc, char** argv) {
  Arguments arguments;
  for (;;) {
    const int option =
        ::getopt_long(argc, argv, "c:f:rsnmi:t:d:UhV", kLongOptions, nullptr);
    if (option == -1) break;
    switch (option) {
      case 'c':
        arguments.commands.emplace_back(optarg);
        break;
      case 'f':
        arguments.target.format = optarg;
        break;
      case 'r':
        arguments.target.read_only = true;
        break;
      case 's':
        arguments.target.snapshot = true;
        break;
      case 'n':
        arguments.target.cache_mode = spindle::CacheMode::kNone;
        break;
      case 'm':
        arguments.target.misaligned_buffers = true;
        break;
      case 'i':
        check_aio_mode(optarg);
        break;
      case 't':
        arguments.target.cache_mode = cache_mode(optarg);
        break;
      case 'd':
        arguments.target.ignore_discards = ignores_discards(optarg);
        break;
      case 'U':
        arguments.target.force_share = true;
        break;
      case 'V':
        std::printf("%s 0.1\n", kProgram);
        leave(0);
      default:
        std::printf("%s", kUsage);
        leave(option == 'h' ? 0 : 1);
    }
  }
  if (optind < argc) arguments.target.filename = argv[optind++];
  if (optind < argc) {
    std::printf("%s", kUsage);
    leave(1);
  }
  return arguments;
}

std::unique_ptr<IoImage> open_image(const spindle::IoTarget& target) {
  const auto refuse_image = [&](absl::string_view why) {
    refuse(absl::StrCat("can't open device ", target.filename, ": ", why));
  };
  if (target.force_share && !target.read_only)
    refuse_image("force-share=on can only be used with read-only images");
  absl::StatusOr<std::unique_ptr<IoImage>> image = IoImage::open(target);
  if (!image.ok()) refuse_image(image.status().message());
  return *std::move(image);
}

// The program's exit code: of all commands, 1 if one of them failed.
int run_commands(const std::vector<std::string>& commands, IoImage* image) {
  int code = 0;
  for (const std::string& command : commands) {
    const IoOutcome outcome = spindle::run_io_line(command, image);
    if (outcome == IoOutcome::kQuit) break;
    if (outcome == IoOutcome::kFailed) code = 1;
  }
  return code;
}

int run_standard_input(IoImage* image) {
  int code = 0;
  std::string line;
  for (;;) {
    std::printf("%s> ", kProgram);
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) return code;
    const IoOutcome outcome = spindle::run_io_line(line, image);
    if (outcome == IoOutcome::kQuit) return code;
    if (outcome == IoOutcome::kFailed) code = 1;
  }
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments arguments = read_arguments(argc, argv);
  std::unique_ptr<IoImage> image;
  if (!arguments.target.filename.empty()) image = open_image(arguments.target);
  int code = arguments.commands.empty()
                 ? run_standard_input(image.get())
                 : run_commands(arguments.commands, image.get());
  if (image != nullptr) {
    const absl::Status closed = image->close();
    if (!closed.ok()) code = spindle::fail_as(kProgram, closed.message());
  }
  return std::fflush(stdout) == 0 ? code : 1;
}

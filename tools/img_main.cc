// spindle-img: make, copy, inspect, change and measure disk images; a drop-in
// for QEMU's qemu-img.
#include <getopt.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_help.h"
#include "tools/img_options.h"

namespace {

struct Subcommand {
  const char* name;
  int (*run)(int argc, char** argv);
};

constexpr Subcommand kSubcommands[] = {
    {"amend", spindle::run_amend},
    {"bench", spindle::run_bench},
    {"bitmap", spindle::run_bitmap},
    {"check", spindle::run_check},
    {"commit", spindle::run_commit},
    {"compare", spindle::run_compare},
    {"convert", spindle::run_convert},
    {"create", spindle::run_create},
    {"dd", spindle::run_dd},
    {"info", spindle::run_info},
    {"map", spindle::run_map},
    {"measure", spindle::run_measure},
    {"rebase", spindle::run_rebase},
    {"resize", spindle::run_resize},
    {"snapshot", spindle::run_snapshot},
};

constexpr option kStandardOptions[] = {
    {"help", no_argument, nullptr, 'h'},
    {"version", no_argument, nullptr, 'V'},
    {"trace", required_argument, nullptr, 'T'},
    {"restrict", no_argument, nullptr, spindle::kOptionRestrict},
    {nullptr, 0, nullptr, 0},
};

[[noreturn]] void leave(int code) {
  std::fflush(stdout);
  std::exit(code);
}

void read_standard_options(int argc, char** argv) {
  for (;;) {
    switch (::getopt_long(argc, argv, "+:hVT:", kStandardOptions, nullptr)) {
      case -1:
        return;
      case ':':
        spindle::exit_with_usage(absl::StrCat("missing argument for option '",
                                              argv[optind - 1], "'"));
      case '?':
        spindle::exit_with_usage(
            absl::StrCat("unrecognized option '", argv[optind - 1], "'"));
      case 'h':
        spindle::print_help();
        leave(0);
      case 'V':
        spindle::print_version();
        leave(0);
      case spindle::kOptionRestrict:
        spindle::restrict_images();
        break;
      default:  // -T: there are no trace points
        break;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  // What a closed pipe or a limit on the size of files makes fail is an error
  // like any other: there may be something to clean up.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  if (argc > 0) spindle::set_program_name(argv[0]);
  if (argc < 2) spindle::exit_with_usage("Not enough arguments");
  read_standard_options(argc, argv);
  if (optind >= argc) return 0;
  argc -= optind;
  argv += optind;
  for (const Subcommand& subcommand : kSubcommands) {
    if (std::strcmp(argv[0], subcommand.name) != 0) continue;
    const int code = subcommand.run(argc, argv);
    return std::fflush(stdout) == 0 ? code : 1;
  }
  spindle::exit_with_usage(absl::StrCat("Command not found: ", argv[0]));
}

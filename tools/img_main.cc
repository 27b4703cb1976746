// spindle-img: make, copy, inspect and measure disk images.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "tools/cli_text.h"
#include "tools/commands.h"

namespace {

int report_misuse(const CLI::App& app, const CLI::ParseError& error) {
  // --help arrives here, too.
  if (error.get_exit_code() == 0) return app.exit(error);
  return spindle::fail(std::string(error.what()) +
                       "\nTry 'spindle-img --help' for more information");
}

// "resize disk.img -1G": the last argument is a size, not an option.
std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2 || arguments[0] != "resize") return arguments;
  const std::string& last = arguments.back();
  const bool is_size =
      last.size() > 1 && last[0] == '-' && last[1] >= '0' && last[1] <= '9';
  if (is_size && arguments[arguments.size() - 2] != "--")
    arguments.insert(arguments.end() - 1, "--");
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 0) spindle::set_program_name(argv[0]);
  CLI::App app("Make, copy, inspect and measure disk images.", "spindle-img");
  app.require_subcommand(1);
  using AddCommand = spindle::Command (*)(CLI::App*);
  const std::vector<std::pair<const char*, AddCommand>> adders = {
      {"amend", spindle::add_amend_command},
      {"create", spindle::add_create_command},
      {"check", spindle::add_check_command},
      {"convert", spindle::add_convert_command},
      {"info", spindle::add_info_command},
      {"map", spindle::add_map_command},
      {"bench", spindle::add_bench_command},
      {"resize", spindle::add_resize_command},
      {"snapshot", spindle::add_snapshot_command},
      {"bitmap", spindle::add_bitmap_command},
  };
  std::vector<std::pair<std::string, spindle::Command>> commands;
  for (const auto& [name, add] : adders) commands.emplace_back(name, add(&app));
  try {
    std::vector<std::string> arguments = arguments_of(argc, argv);
    // The parser takes them from the back.
    std::reverse(arguments.begin(), arguments.end());
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return report_misuse(app, error);
  }
  for (const auto& [name, run] : commands) {
    if (!app.got_subcommand(name)) continue;
    const int code = run();
    return std::fflush(stdout) == 0 ? code : 1;
  }
  return 1;
}

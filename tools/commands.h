// The subcommands of spindle-img: each registers its options with the command
// line parser and runs once that has accepted them.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_COMMANDS_H_
#define SPINDLE_TOOLS_COMMANDS_H_

#include <functional>

namespace CLI {
class App;
}

namespace spindle {

// Adds a subcommand to `app` and returns what runs it: the exit code.
using Command = std::function<int()>;
Command add_amend_command(CLI::App* app);
Command add_create_command(CLI::App* app);
Command add_check_command(CLI::App* app);
Command add_convert_command(CLI::App* app);
Command add_info_command(CLI::App* app);
Command add_map_command(CLI::App* app);
Command add_bench_command(CLI::App* app);
Command add_resize_command(CLI::App* app);
Command add_snapshot_command(CLI::App* app);
Command add_bitmap_command(CLI::App* app);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_COMMANDS_H_

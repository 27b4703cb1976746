// The subcommands of spindle-img: each reads its own command line, of which
// argv[0] is the subcommand's name, and returns the exit code.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_COMMANDS_H_
#define SPINDLE_TOOLS_COMMANDS_H_

namespace spindle {

int run_amend(int argc, char** argv);
int run_bench(int argc, char** argv);
int run_bitmap(int argc, char** argv);
int run_check(int argc, char** argv);
int run_commit(int argc, char** argv);
int run_compare(int argc, char** argv);
int run_convert(int argc, char** argv);
int run_create(int argc, char** argv);
int run_dd(int argc, char** argv);
int run_info(int argc, char** argv);
int run_map(int argc, char** argv);
int run_measure(int argc, char** argv);
int run_rebase(int argc, char** argv);
int run_resize(int argc, char** argv);
int run_snapshot(int argc, char** argv);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_COMMANDS_H_

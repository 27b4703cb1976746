#include "tests/formats/raw/qemu_io_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/match.h"

extern char** environ;

namespace spindle::testing {
namespace {

// qemu-io answers `read` with a line that counts the operations.
constexpr char kFirstCommand[] = "read 0 512\n";
constexpr char kAnswer[] = "1 ops;";

struct Pipe {
  Pipe() {
    if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
  }
  int ends[2];
};

pid_t spawn(const std::vector<std::string>& arguments, int input, int output) {
  std::vector<char*> argv = {const_cast<char*>("qemu-io")};
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO);
  pid_t pid = -1;
  if (::posix_spawnp(&pid, "qemu-io", &actions, nullptr, argv.data(),
                     environ) != 0)
    pid = -1;
  posix_spawn_file_actions_destroy(&actions);
  return pid;
}

}  // namespace

QemuIoProcess::QemuIoProcess(const std::vector<std::string>& arguments) {
  const Pipe input;
  const Pipe output;
  pid_ = spawn(arguments, input.ends[0], output.ends[1]);
  ::close(input.ends[0]);
  ::close(output.ends[1]);
  to_child_ = input.ends[1];
  from_child_ = output.ends[0];

  // The pipe holds the command until it is read; a child that has given up
  // closes its end of the other one.
  ::signal(SIGPIPE, SIG_IGN);
  const ssize_t sent =
      ::write(to_child_, kFirstCommand, sizeof(kFirstCommand) - 1);
  static_cast<void>(sent);
  char buffer[4096];
  while (!has_opened_) {
    const ssize_t got = ::read(from_child_, buffer, sizeof(buffer));
    if (got <= 0) return;
    output_.append(buffer, static_cast<size_t>(got));
    has_opened_ = absl::StrContains(output_, kAnswer);
  }
}

QemuIoProcess::~QemuIoProcess() {
  ::close(to_child_);  // the end of its input has it quit
  char buffer[4096];
  while (::read(from_child_, buffer, sizeof(buffer)) > 0) {
  }
  ::close(from_child_);
  int status = 0;
  if (pid_ > 0) ::waitpid(pid_, &status, 0);
}

}  // namespace spindle::testing

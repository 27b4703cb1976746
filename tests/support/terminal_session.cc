#include "tests/support/terminal_session.h"

#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "engine/errors.h"

namespace spindle::testing {
namespace {

constexpr absl::Duration kPatience = absl::Minutes(1);

}  // namespace

absl::StatusOr<std::unique_ptr<TerminalSession>> TerminalSession::start(
    const std::vector<std::string>& arguments) {
  std::vector<std::string> copies = arguments;
  std::vector<char*> argv;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  winsize size = {};
  size.ws_row = 24;
  size.ws_col = 80;
  ::setenv("TERM", "vt100", /*overwrite=*/1);
  int fd = -1;
  const pid_t child = ::forkpty(&fd, nullptr, nullptr, &size);
  if (child < 0) return errno_status(errno, "forkpty");
  if (child == 0) {
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  return std::unique_ptr<TerminalSession>(new TerminalSession(child, fd));
}

TerminalSession::~TerminalSession() {
  if (!has_ended_) {
    ::kill(child_, SIGKILL);
    wait_for_end();
  }
  ::close(fd_);
}

void TerminalSession::wait_until_keys_are_read() const {
  const absl::Time end = absl::Now() + kPatience;
  termios mode = {};
  while (::tcgetattr(fd_, &mode) == 0 && (mode.c_lflag & ICANON) != 0 &&
         absl::Now() < end) {
    absl::SleepFor(absl::Milliseconds(1));
  }
}

void TerminalSession::type(absl::string_view keys) {
  wait_until_keys_are_read();
  line_count_before_ = screen_.lines().size();
  last_line_before_ = last_line();
  while (!keys.empty()) {
    const ssize_t count = ::write(fd_, keys.data(), keys.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    keys.remove_prefix(static_cast<size_t>(count));
  }
}

bool TerminalSession::read_some(absl::Duration patience) {
  pollfd watched = {.fd = fd_, .events = POLLIN, .revents = 0};
  const int ready = ::poll(
      &watched, 1, static_cast<int>(absl::ToInt64Milliseconds(patience)));
  if (ready <= 0) return ready < 0 && errno == EINTR;
  char bytes[4096];
  const ssize_t count = ::read(fd_, bytes, sizeof bytes);
  if (count <= 0) return count < 0 && errno == EINTR;
  screen_.print({bytes, static_cast<size_t>(count)});
  return true;
}

std::string TerminalSession::last_line() const {
  const std::vector<std::string> lines = screen_.lines();
  for (auto it = lines.rbegin(); it != lines.rend(); ++it) {
    if (!it->empty()) return *it;
  }
  return {};
}

bool TerminalSession::wait_for_last_line(absl::string_view text) {
  return read_until([&] {
    return last_line() == text && (text != last_line_before_ ||
                                   screen_.lines().size() > line_count_before_);
  });
}

bool TerminalSession::wait_for_text(absl::string_view text) {
  return read_until([&] {
    const std::vector<std::string> lines = screen_.lines();
    return std::any_of(lines.begin(), lines.end(), [&](const std::string& l) {
      return absl::StrContains(l, text);
    });
  });
}

bool TerminalSession::read_until(absl::FunctionRef<bool()> is_there) {
  const absl::Time end = absl::Now() + kPatience;
  while (!is_there()) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration() || !read_some(left)) return false;
  }
  return true;
}

int TerminalSession::wait_for_end() {
  // What it still prints must be read: else it would wait.
  while (read_some(kPatience)) continue;
  int status = 0;
  while (::waitpid(child_, &status, 0) < 0 && errno == EINTR) continue;
  has_ended_ = true;
  return status;
}

}  // namespace spindle::testing

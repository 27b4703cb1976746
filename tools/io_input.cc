#include "tools/io_input.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

namespace spindle {
namespace {

// A file or a pipe.
class StreamInput final : public IoInput {
 public:
  StreamInput(std::string prompt, Background background)
      : prompt_(std::move(prompt)), background_(std::move(background)) {}

  std::optional<std::string> next_line() override {
    std::printf("%s", prompt_.c_str());
    std::fflush(stdout);
    size_t end;
    while ((end = pending_.find('\n')) == std::string::npos) {
      if (!read_more()) return take_rest();
    }
    std::string line = pending_.substr(0, end);
    pending_.erase(0, end + 1);
    return line;
  }

 private:
  // False at the end.
  bool read_more() {
    char bytes[4096];
    for (;;) {
      while (wait_for_input(background_)) continue;
      const ssize_t count = ::read(STDIN_FILENO, bytes, sizeof bytes);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      pending_.append(bytes, static_cast<size_t>(count));
      return true;
    }
  }

  // The last line may have no end.
  std::optional<std::string> take_rest() {
    if (pending_.empty()) return std::nullopt;
    return std::exchange(pending_, {});
  }

  const std::string prompt_;
  const Background background_;
  std::string pending_;
};

}  // namespace

std::unique_ptr<IoInput> IoInput::create(const std::string& prompt,
                                         std::vector<std::string> words,
                                         Background background) {
  if (::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) {
    return create_terminal_input(prompt, std::move(words),
                                 std::move(background));
  }
  return std::make_unique<StreamInput>(prompt, std::move(background));
}

bool wait_for_input(const IoInput::Background& background) {
  for (;;) {
    pollfd watched[2] = {
        {.fd = STDIN_FILENO, .events = POLLIN, .revents = 0},
        {.fd = background.event_fd(), .events = POLLIN, .revents = 0}};
    if (::poll(watched, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    // Lines that are there already do not wait for requests.
    if (watched[0].revents != 0) return false;
    background.handle();
    std::fflush(stdout);
    return true;
  }
}

}  // namespace spindle

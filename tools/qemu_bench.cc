#include "tools/qemu_bench.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"

extern char** environ;

namespace spindle {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> command_line(const std::string& program,
                                      const BenchTarget& target,
                                      const BenchOptions& options) {
  std::vector<std::string> words = {
      program, "bench",
      "-c",    absl::StrCat(options.request_count),
      "-d",    absl::StrCat(options.depth),
      "-s",    absl::StrCat(options.request_bytes),
      "-S",    absl::StrCat(options.step_bytes),
      "-o",    absl::StrCat(options.offset),
      "-t",    std::string(cache_mode_name(target.cache_mode))};
  if (options.write) words.insert(words.end(), {"-w", "-q"});
  if (target.force_share) words.emplace_back("-U");
  if (target.image.image_opts) words.emplace_back("--image-opts");
  if (!target.image.format.empty())
    words.insert(words.end(), {"-f", target.image.format});
  words.insert(words.end(), {"--", target.image.name});
  return words;
}

// What the program prints; its errors are dropped.
absl::StatusOr<std::string> output_of(const std::vector<std::string>& words) {
  std::vector<char*> arguments;
  for (const std::string& word : words)
    arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno_status(errno, "pipe");
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null",
                                     O_WRONLY, 0);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, arguments[0], &actions, nullptr,
                                  arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  std::string output;
  if (error == 0) {
    std::array<char, 4096> buffer;
    ssize_t got = 0;
    while ((got = ::read(ends[0], buffer.data(), buffer.size())) > 0)
      output.append(buffer.data(), static_cast<size_t>(got));
  }
  ::close(ends[0]);
  if (error != 0) return errno_status(error, words[0]);
  int code = 0;
  if (::waitpid(child, &code, 0) != child || code != 0)
    return absl::InternalError(absl::StrCat(words[0], " failed"));
  return output;
}

}  // namespace

std::string find_qemu_img() {
  const char* const path = std::getenv("PATH");
  if (path == nullptr) return {};
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  for (const absl::string_view folder : absl::StrSplit(path, ':')) {
    const std::string program = absl::StrCat(folder, "/qemu-img");
    if (::access(program.c_str(), X_OK) != 0) continue;
    return fs::equivalent(program, self, error) ? "" : program;
  }
  return {};
}

absl::StatusOr<double> run_qemu_bench(const std::string& program,
                                      const BenchTarget& target,
                                      const BenchOptions& options) {
  if (options.random)
    return absl::UnimplementedError("qemu-img bench has no random offsets");
  const absl::StatusOr<std::string> output =
      output_of(command_line(program, target, options));
  if (!output.ok()) return output.status();
  constexpr absl::string_view kBefore = "Run completed in ";
  const size_t at = output->find(kBefore);
  double seconds = 0;
  if (at == std::string::npos ||
      !absl::SimpleAtod(
          absl::string_view(*output).substr(
              at + kBefore.size(),
              output->find(' ', at + kBefore.size()) - at - kBefore.size()),
          &seconds) ||
      seconds <= 0 || options.request_count == 0) {
    return absl::InternalError(
        absl::StrCat(program, " did not say how long it took"));
  }
  return static_cast<double>(options.request_count) / seconds;
}

}  // namespace spindle

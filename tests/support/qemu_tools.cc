#include "tests/support/qemu_tools.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

extern char** environ;

namespace spindle::testing {
namespace {

absl::Status failure(const std::vector<std::string>& arguments,
                     absl::string_view what) {
  return absl::InternalError(
      absl::StrCat(absl::StrJoin(arguments, " "), ": ", what));
}

std::string read_to_end(int fd) {
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer, static_cast<size_t>(got));
  }
}

std::string unique_path(absl::string_view directory, absl::string_view stem) {
  static std::atomic<int> counter{0};
  // Tests in sandboxes of their own share directories, and process numbers.
  static const uint32_t process = std::random_device()();
  return absl::StrCat(directory, "/", stem, ".", process, ".", counter++);
}

absl::StatusOr<nlohmann::json> run_for_json(
    const std::vector<std::string>& arguments) {
  const auto text = run_tool_ok(arguments);
  if (!text.ok()) return text.status();
  nlohmann::json parsed =
      nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded())
    return failure(arguments, absl::StrCat("no JSON: ", *text));
  return parsed;
}

using Arguments = std::vector<std::string>;

// As after --image-opts.
std::string image_options(const ImageFile& image) {
  return absl::StrCat(
      "driver=", image.format, ",file.driver=file,file.filename=", image.path,
      image.passphrase.empty() ? ""
                               : absl::StrCat(",", secret_option(image),
                                              "=secret0", image.more_options));
}

// Makes the passphrase of one of `images` known as "secret0".
void add_secret(std::initializer_list<const ImageFile*> images,
                Arguments* arguments) {
  for (const ImageFile* image : images) {
    if (image->passphrase.empty()) continue;
    arguments->insert(arguments->end(),
                      {"--object", absl::StrCat("secret,id=secret0,data=",
                                                image->passphrase)});
    return;
  }
}

// "-f FORMAT FILE", or what stands for that where there is a passphrase.
void add_image(const ImageFile& image, Arguments* arguments) {
  add_secret({&image}, arguments);
  if (image.passphrase.empty()) {
    arguments->insert(arguments->end(), {"-f", image.format, image.path});
  } else {
    arguments->insert(arguments->end(), {"--image-opts", image_options(image)});
  }
}

std::string with_options(const ImageFile& image, const QemuIoOptions& options) {
  return absl::StrCat(image_options(image),
                      options.unmap ? ",discard=unmap,file.discard=unmap" : "",
                      options.read_only ? ",read-only=on" : "");
}

// Standard input comes from a file; standard error goes to one, or, with an
// empty name, to where standard output goes.
absl::StatusOr<ToolResult> spawn(const std::vector<std::string>& arguments,
                                 const std::string& input_file,
                                 const std::string& error_file) {
  int pipe_ends[2];
  if (::pipe2(pipe_ends, O_CLOEXEC) != 0)
    return failure(arguments, "pipe2 failed");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, input_file.c_str(), O_RDONLY,
                                   0);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], 1);
  if (error_file.empty()) {
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], 2);
  } else {
    posix_spawn_file_actions_addopen(&actions, 2, error_file.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
  }
  std::vector<char*> argv;
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t pid = -1;
  const int error =
      ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(pipe_ends[1]);
  ToolResult result;
  if (error == 0) result.output = read_to_end(pipe_ends[0]);
  ::close(pipe_ends[0]);
  if (error != 0) return failure(arguments, "cannot be started");
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return failure(arguments, "waitpid failed");
  }
  result.exit_code =
      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace

absl::StatusOr<ToolResult> run_tool(const std::vector<std::string>& arguments) {
  return spawn(arguments, "/dev/null", "");
}

absl::StatusOr<SeparateResult> run_tool_apart(
    const std::vector<std::string>& arguments, absl::string_view input) {
  const std::string input_file = temporary_path("input");
  const std::string error_file = temporary_path("errors");
  absl::Status status = write_file(
      input_file,
      {reinterpret_cast<const uint8_t*>(input.data()), input.size()});
  if (!status.ok()) return status;
  auto result = spawn(arguments, input_file, error_file);
  const auto errors = read_file(error_file);
  ::unlink(input_file.c_str());
  ::unlink(error_file.c_str());
  if (!result.ok()) return result.status();
  if (!errors.ok()) return errors.status();
  return SeparateResult{.exit_code = result->exit_code,
                        .output = std::move(result->output),
                        .errors = std::string(errors->begin(), errors->end())};
}

absl::StatusOr<std::string> run_tool_ok(
    const std::vector<std::string>& arguments) {
  auto result = run_tool(arguments);
  if (!result.ok()) return result.status();
  if (result->exit_code != 0) {
    return failure(arguments, absl::StrCat("exit code ", result->exit_code,
                                           ": ", result->output));
  }
  return std::move(result->output);
}

std::string secret_option(const ImageFile& image) {
  return image.format == "luks" ? "key-secret" : "encrypt.key-secret";
}

absl::Status qemu_create(const QemuCreate& create) {
  std::vector<std::string> arguments = {"qemu-img", "create", "-q", "-f",
                                        create.image.format};
  add_secret({&create.image}, &arguments);
  if (!create.options.empty())
    arguments.insert(arguments.end(), {"-o", create.options});
  if (create.backing) {
    arguments.insert(arguments.end(), {"-b", create.backing->path, "-F",
                                       create.backing->format});
  }
  arguments.insert(arguments.end(),
                   {create.image.path, absl::StrCat(create.size_bytes)});
  return run_tool_ok(arguments).status();
}

absl::Status qemu_convert(const ImageFile& from, const ImageFile& to,
                          const std::string& options,
                          const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {"qemu-img", "convert", "-O", to.format};
  all.insert(all.end(), arguments.begin(), arguments.end());
  if (!options.empty()) all.insert(all.end(), {"-o", options});
  if (from.passphrase.empty()) add_secret({&to}, &all);
  add_image(from, &all);
  all.push_back(to.path);
  return run_tool_ok(all).status();
}

absl::Status qemu_check(const ImageFile& image) {
  // The exit code would do (3: leaks only); the numbers make a better message.
  std::vector<std::string> arguments = {"qemu-img", "check", "--output=json"};
  add_image(image, &arguments);
  const auto result = run_tool(arguments);
  if (!result.ok()) return result.status();
  if (result->exit_code != 0) {
    return failure(arguments, absl::StrCat("exit code ", result->exit_code,
                                           ": ", result->output));
  }
  const auto report = nlohmann::json::parse(result->output, nullptr, false);
  if (!report.is_object()) return failure(arguments, result->output);
  for (const char* key : {"corruptions", "leaks", "check-errors"}) {
    if (report.value(key, 0) != 0) return failure(arguments, result->output);
  }
  return absl::OkStatus();
}

absl::Status qemu_compare(const ImageFile& a, const ImageFile& b) {
  // Not -s: that would also compare what is allocated.
  std::vector<std::string> arguments = {"qemu-img", "compare"};
  add_secret({&a, &b}, &arguments);
  if (a.passphrase.empty() && b.passphrase.empty()) {
    arguments.insert(arguments.end(),
                     {"-f", a.format, "-F", b.format, a.path, b.path});
  } else {
    arguments.insert(arguments.end(),
                     {"--image-opts", image_options(a), image_options(b)});
  }
  const auto output = run_tool_ok(arguments);
  if (!output.ok()) return output.status();
  if (absl::StrContains(*output, "size mismatch"))
    return failure(arguments, *output);
  return absl::OkStatus();
}

std::string to_string(const MapEntry& entry) {
  return absl::StrCat("[", entry.start, ", +", entry.length, ") depth ",
                      entry.depth, entry.zero ? " zero" : "",
                      entry.data ? " data" : "",
                      entry.compressed ? " compressed" : "",
                      entry.offset ? absl::StrCat(" at ", *entry.offset) : "");
}

absl::StatusOr<std::vector<MapEntry>> qemu_map(const ImageFile& image) {
  std::vector<std::string> arguments = {"qemu-img", "map", "--output=json"};
  add_image(image, &arguments);
  const auto report = run_for_json(arguments);
  if (!report.ok()) return report.status();
  std::vector<MapEntry> entries;
  for (const auto& item : *report) {
    MapEntry entry{.start = item.value("start", uint64_t{0}),
                   .length = item.value("length", uint64_t{0}),
                   .depth = item.value("depth", 0),
                   .zero = item.value("zero", false),
                   .data = item.value("data", false),
                   .compressed = item.value("compressed", false),
                   .offset = std::nullopt};
    if (item.contains("offset"))
      entry.offset = item.value("offset", uint64_t{0});
    entries.push_back(entry);
  }
  return entries;
}

std::vector<MapEntry> placement(const std::vector<MapEntry>& map) {
  std::vector<MapEntry> merged;
  for (MapEntry entry : map) {
    if (entry.offset) entry.zero = false, entry.data = true;
    if (!merged.empty()) {
      MapEntry& last = merged.back();
      const bool goes_on =
          last.depth == entry.depth && last.zero == entry.zero &&
          last.data == entry.data && last.compressed == entry.compressed &&
          last.offset.has_value() == entry.offset.has_value() &&
          (!last.offset || *last.offset + last.length == *entry.offset);
      if (goes_on) {
        last.length += entry.length;
        continue;
      }
    }
    merged.push_back(entry);
  }
  return merged;
}

absl::Status qemu_io(const ImageFile& image,
                     const std::vector<std::string>& commands,
                     QemuIoOptions options) {
  // A handful of thousand commands at most fit one command line.
  constexpr size_t kMostAtOnce = 2000;
  for (size_t from = 0; from < commands.size() || from == 0;
       from += kMostAtOnce) {
    std::vector<std::string> arguments = {"qemu-io"};
    if (options.read_only) arguments.push_back("-r");
    add_secret({&image}, &arguments);
    arguments.insert(arguments.end(),
                     {"--image-opts", with_options(image, options)});
    for (size_t i = from; i < commands.size() && i < from + kMostAtOnce; ++i) {
      arguments.insert(arguments.end(), {"-c", commands[i]});
    }
    const auto output = run_tool_ok(arguments);
    if (!output.ok()) return output.status();
    for (const char* bad : {"failed", "rror", "can't", "not found"}) {
      if (absl::StrContains(*output, bad)) return failure(arguments, *output);
    }
  }
  return absl::OkStatus();
}

absl::Status write_file(const std::string& path,
                        absl::Span<const uint8_t> content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(content.data()),
             static_cast<std::streamsize>(content.size()));
  file.close();
  return file.good() ? absl::OkStatus()
                     : absl::InternalError(absl::StrCat("cannot write ", path));
}

absl::StatusOr<std::vector<uint8_t>> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff length = file.good() ? std::streamoff{file.tellg()} : -1;
  if (length < 0)
    return absl::InternalError(absl::StrCat("cannot read ", path));
  std::vector<uint8_t> bytes(static_cast<size_t>(length));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), length);
  if (file.gcount() != length)
    return absl::InternalError(absl::StrCat("cannot read all of ", path));
  return bytes;
}

std::string temporary_path(absl::string_view stem) {
  const char* directory = std::getenv("TEST_TMPDIR");
  if (directory == nullptr) directory = std::getenv("TMPDIR");
  return unique_path(directory != nullptr ? directory : "/tmp", stem);
}

std::string tmpfs_path(absl::string_view stem) {
  const char* directory = std::getenv("SPINDLE_TMPFS");
  if (directory == nullptr) directory = "/dev/shm";
  if (::access(directory, W_OK) != 0) return temporary_path(stem);
  return unique_path(directory, stem);
}

}  // namespace spindle::testing

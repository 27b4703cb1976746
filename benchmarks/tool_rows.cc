#include "benchmarks/tool_rows.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

extern char** environ;

namespace spindle::benchmarks {
namespace {

using Arguments = std::vector<std::string>;

struct Run {
  double seconds = 0;
  double max_resident_kib = 0;
};

absl::StatusOr<Run> run_program(const Arguments& arguments) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  std::vector<char*> argv;
  for (const std::string& argument : arguments)
    argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const absl::Time start = absl::Now();
  pid_t pid = -1;
  const int error =
      ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    return absl::InternalError(absl::StrCat("cannot start ", arguments[0]));
  int status = 0;
  struct rusage usage = {};
  while (::wait4(pid, &status, 0, &usage) < 0) {
    if (errno != EINTR) return absl::InternalError("wait4 failed");
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::InternalError(
        absl::StrCat(absl::StrJoin(arguments, " "), " failed"));
  }
  return Run{absl::ToDoubleSeconds(absl::Now() - start),
             static_cast<double>(usage.ru_maxrss)};
}

// A raw image of which a third each is data, data of zeroes, and holes, in runs
// of some megabytes; half of the data can be compressed.  Removed at the end.
class MixedImage {
 public:
  MixedImage(const std::string& directory, uint64_t bytes)
      : stem_(absl::StrCat(directory, "/spindle-tools.", ::getpid())),
        bytes_(bytes) {}
  ~MixedImage() {
    for (const std::string& name : {raw(), qcow2(), target()})
      ::unlink(name.c_str());
  }
  MixedImage(const MixedImage&) = delete;
  MixedImage& operator=(const MixedImage&) = delete;

  absl::Status make() const;
  std::string raw() const { return stem_ + ".raw"; }
  std::string qcow2() const { return stem_ + ".qcow2"; }
  std::string target() const { return stem_ + ".out"; }

 private:
  const std::string stem_;
  const uint64_t bytes_;
};

absl::Status MixedImage::make() const {
  constexpr uint64_t kRunBytes = uint64_t{4} << 20;
  constexpr uint64_t kSeed = 7;
  const int fd =
      ::open(raw().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) return absl::InternalError(absl::StrCat("cannot make ", raw()));
  std::mt19937_64 random(kSeed);
  std::vector<uint64_t> run(kRunBytes / sizeof(uint64_t));
  bool good = ::ftruncate(fd, static_cast<off_t>(bytes_)) == 0;
  for (uint64_t at = 0; at < bytes_ && good; at += kRunBytes) {
    const uint64_t kind = random() % 3;
    if (kind == 2) continue;
    for (size_t i = 0; i < run.size(); ++i) {
      // Words that repeat make half of it compressible.
      run[i] = kind == 1 ? 0 : (i % 16 < 8 ? random() : i / 512);
    }
    const size_t bytes = std::min<uint64_t>(kRunBytes, bytes_ - at);
    good = ::pwrite(fd, run.data(), bytes, static_cast<off_t>(at)) ==
           static_cast<ssize_t>(bytes);
  }
  ::close(fd);
  if (!good) return absl::InternalError(absl::StrCat("cannot fill ", raw()));
  return run_program({"qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw(),
                      qcow2()})
      .status();
}

class ToolRows {
 public:
  ToolRows(const BenchContext& context, const std::string& program)
      : context_(context),
        program_(program),
        mib_(static_cast<double>(context.settings->image_mib)),
        image_(context.settings->tmpfs, context.settings->image_bytes()) {}

  absl::Status run();

 private:
  struct Variant {
    std::string name;     // "qemu-img -W -m 16"
    std::string program;  // empty: ours
    Arguments options;
  };
  // Measures `arguments` (behind the command's options) with all variants.
  absl::Status measure(const std::string& name, const Arguments& command,
                       const Arguments& arguments,
                       const std::vector<Variant>& variants);
  void add(const std::string& name, const std::string& other, double target);
  void add_best(const std::string& name, const std::vector<std::string>& others,
                double target);
  void add_memory(const std::string& name, const std::string& other);
  absl::Status conversions();
  absl::Status compressions();
  absl::Status others();

  static std::vector<Variant> conversion_variants() {
    return {{"ours", "", {}},
            {"ours -W -m 16", "", {"-W", "-m", "16"}},
            {"qemu-img", "qemu-img", {}},
            {"qemu-img -W -m 16", "qemu-img", {"-W", "-m", "16"}}};
  }

  const BenchContext& context_;
  const std::string program_;
  const double mib_;
  const MixedImage image_;
  std::map<std::string, double> medians_;  // MiB/s
  std::map<std::string, double> memory_;   // the most, KiB
};

absl::Status ToolRows::measure(const std::string& name,
                               const Arguments& command,
                               const Arguments& arguments,
                               const std::vector<Variant>& variants) {
  std::fprintf(stderr, "%s:\n", name.c_str());
  memory_.clear();
  std::vector<Contestant> contestants;
  for (const Variant& variant : variants) {
    Arguments all = {variant.program.empty() ? program_ : variant.program};
    for (const Arguments* part : {&command, &variant.options, &arguments})
      all.insert(all.end(), part->begin(), part->end());
    contestants.push_back(
        {variant.name, [this, all, &variant]() -> absl::StatusOr<double> {
           const absl::StatusOr<Run> run = run_program(all);
           if (!run.ok()) return run.status();
           double& most = memory_[variant.name];
           most = std::max(most, run->max_resident_kib);
           return mib_ / run->seconds;
         }});
  }
  const auto medians = measure_in_turns(contestants, context_.settings->rounds);
  if (!medians.ok()) return medians.status();
  medians_ = *medians;
  return absl::OkStatus();
}

void ToolRows::add(const std::string& name, const std::string& other,
                   double target) {
  context_.table->add({.name = absl::StrCat(name, ", MiB/s"),
                       .ours = medians_.at("ours"),
                       .other = medians_.at(other),
                       .other_name = other,
                       .target = target,
                       .unit = 1});
}

void ToolRows::add_best(const std::string& name,
                        const std::vector<std::string>& others, double target) {
  std::string best = others[0];
  for (const std::string& other : others) {
    if (medians_.at(other) > medians_.at(best)) best = other;
  }
  add(name, best, target);
}

void ToolRows::add_memory(const std::string& name, const std::string& other) {
  // Less is better: the ratio is that of the inverse.
  context_.table->add({.name = absl::StrCat(name, ", memory, 1/GiB"),
                       .ours = 1048576 / memory_.at("ours"),
                       .other = 1048576 / memory_.at(other),
                       .other_name = other,
                       .target = 0.5,
                       .unit = 1});
}

absl::Status ToolRows::conversions() {
  const struct {
    const char* name;
    Arguments arguments;
  } cases[] = {
      {"convert raw to qcow2",
       {"-f", "raw", "-O", "qcow2", image_.raw(), image_.target()}},
      {"convert qcow2 to raw",
       {"-f", "qcow2", "-O", "raw", image_.qcow2(), image_.target()}},
      {"convert qcow2 to qcow2",
       {"-f", "qcow2", "-O", "qcow2", image_.qcow2(), image_.target()}}};
  for (const auto& one : cases) {
    absl::Status status =
        measure(one.name, {"convert"}, one.arguments, conversion_variants());
    if (!status.ok()) return status;
    add_best(one.name, {"qemu-img", "qemu-img -W -m 16"}, 1.0);
    add_memory(one.name, "qemu-img");
  }
  return absl::OkStatus();
}

absl::Status ToolRows::compressions() {
  for (const std::string type : {"zlib", "zstd"}) {
    const std::string name = absl::StrCat("convert -c, ", type);
    absl::Status status = measure(name, {"convert", "-c"},
                                  {"-f", "raw", "-O", "qcow2", "-o",
                                   absl::StrCat("compression_type=", type),
                                   image_.raw(), image_.target()},
                                  conversion_variants());
    if (!status.ok()) return status;
    if (type == "zlib") {
      add(name, "qemu-img", 1.5);
      add(name, "qemu-img -W -m 16", 1.0);
    } else {
      add_best(name, {"qemu-img", "qemu-img -W -m 16"}, 1.0);
    }
    add_memory(name, "qemu-img");
  }
  return absl::OkStatus();
}

absl::Status ToolRows::others() {
  const std::vector<Variant> variants = {{"ours", "", {}},
                                         {"qemu-img", "qemu-img", {}}};
  absl::Status status =
      measure("check", {"check"}, {"-f", "qcow2", image_.qcow2()}, variants);
  if (!status.ok()) return status;
  add("check", "qemu-img", 1.5);
  add_memory("check", "qemu-img");
  status = measure("compare", {"compare"},
                   {"-f", "raw", "-F", "qcow2", image_.raw(), image_.qcow2()},
                   variants);
  if (!status.ok()) return status;
  add("compare", "qemu-img", 1.0);
  add_memory("compare", "qemu-img");
  return absl::OkStatus();
}

absl::Status ToolRows::run() {
  absl::Status status = image_.make();
  if (status.ok()) status = conversions();
  if (status.ok()) status = compressions();
  if (status.ok()) status = others();
  return status;
}

}  // namespace

absl::Status add_tool_rows(const BenchContext& context,
                           const std::string& program) {
  return ToolRows(context, program).run();
}

}  // namespace spindle::benchmarks

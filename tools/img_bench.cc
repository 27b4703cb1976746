// spindle-img bench: measure an image through the asynchronous interface, with
// the options and the lines of qemu-img bench.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/option_values.h"
#include "tools/bench_runner.h"
#include "tools/bench_session.h"
#include "tools/bench_sweep.h"
#include "tools/cli_text.h"
#include "tools/commands.h"

namespace spindle {
namespace {

// As the user wrote them; read_options() makes numbers of them.
struct BenchArguments {
  std::string filename;
  std::string format;
  std::string count = "75000";
  std::string depth = "64";
  std::string flush_interval = "0";
  std::string offset = "0";
  std::string pattern = "0";
  std::string buffer_size = "4096";
  std::string step_size;
  std::string cache = "writeback";
  std::string aio;
  uint64_t threads = 0;  // 0: the default
  uint64_t seed = 1;
  bool native = false;
  bool no_drain = false;
  bool quiet = false;
  bool write = false;
  bool force_share = false;
  bool random = false;
  bool run_in_place = false;
  bool sweep = false;
  bool count_given = false;
};

absl::Status read_number(const std::string& text, uint64_t limit,
                         const char* message, uint64_t* to) {
  const std::optional<uint64_t> value = parse_size(text);
  if (!value.has_value() || *value > limit)
    return absl::InvalidArgumentError(message);
  *to = *value;
  return absl::OkStatus();
}

absl::StatusOr<BenchOptions> read_options(const BenchArguments& arguments) {
  constexpr uint64_t kInt = std::numeric_limits<int32_t>::max();
  constexpr uint64_t kLong = std::numeric_limits<int64_t>::max();
  constexpr uint64_t kByte = 0xff;
  BenchOptions options;
  options.write = arguments.write;
  options.random = arguments.random;
  options.seed = arguments.seed;
  options.drain_on_flush = !arguments.no_drain;
  uint64_t depth = 0;
  uint64_t buffer_size = 0;
  uint64_t pattern = 0;
  absl::Status status =
      read_number(arguments.count, kInt, "Invalid request count specified",
                  &options.request_count);
  if (status.ok()) {
    status = read_number(arguments.depth, kInt, "Invalid queue depth specified",
                         &depth);
  }
  if (status.ok() && depth == 0) {
    status = absl::InvalidArgumentError("Invalid queue depth specified");
  }
  if (status.ok()) {
    status = read_number(arguments.flush_interval, kInt,
                         "Invalid flush interval specified",
                         &options.flush_interval);
  }
  if (status.ok()) {
    status = read_number(arguments.offset, kLong, "Invalid offset specified",
                         &options.offset);
  }
  if (status.ok()) {
    status = read_number(arguments.pattern, kByte,
                         "Invalid pattern byte specified", &pattern);
  }
  if (status.ok()) {
    status = read_number(arguments.buffer_size, kInt,
                         "Invalid buffer size specified", &buffer_size);
  }
  options.step_bytes = buffer_size;
  if (status.ok() && !arguments.step_size.empty()) {
    status = read_number(arguments.step_size, kInt,
                         "Invalid step size specified", &options.step_bytes);
    if (options.step_bytes == 0) options.step_bytes = buffer_size;
  }
  if (!status.ok()) return status;
  options.depth = depth;
  options.request_bytes = buffer_size;
  options.pattern = static_cast<uint8_t>(pattern);
  if (options.flush_interval > 0 && !options.write) {
    return absl::InvalidArgumentError(
        "--flush-interval is only available in write tests");
  }
  if (options.flush_interval > 0 && options.flush_interval < options.depth) {
    return absl::InvalidArgumentError(
        "Flush interval can't be smaller than depth");
  }
  return options;
}

absl::StatusOr<BenchTarget> read_target(const BenchArguments& arguments) {
  BenchTarget target;
  target.filename = arguments.filename;
  target.format = arguments.format;
  target.read_only = !arguments.write;
  target.force_share = arguments.force_share;
  target.run_in_place = arguments.run_in_place;
  if (arguments.threads > 0) target.threads = arguments.threads;
  const bool none = arguments.cache == "off";  // QEMU's other name
  absl::StatusOr<CacheMode> mode =
      parse_cache_mode(none ? "none" : arguments.cache);
  if (!mode.ok()) return absl::InvalidArgumentError("Invalid cache mode");
  target.cache_mode = *mode;
  return target;
}

// The engine has one way to run requests; scripts for qemu-img name others.
absl::Status check_aio(const BenchArguments& arguments) {
  const std::string aio =
      arguments.native && arguments.aio.empty() ? "native" : arguments.aio;
  if (aio.empty()) return absl::OkStatus();
  if (aio != "threads" && aio != "native" && aio != "io_uring") {
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid aio option: ", aio));
  }
  if (aio != "threads" && !arguments.quiet) {
    std::fprintf(
        stderr,
        "spindle-img: note: '%s' is accepted; the thread pool is used\n",
        aio.c_str());
  }
  return absl::OkStatus();
}

void print_start(const BenchOptions& options) {
  std::printf("Sending %llu %s requests, %zu bytes each, %zu in parallel ",
              static_cast<unsigned long long>(options.request_count),
              options.write ? "write" : "read", options.request_bytes,
              options.depth);
  if (options.random) {
    std::printf("(at random offsets, seed %llu)\n",
                static_cast<unsigned long long>(options.seed));
  } else {
    std::printf("(starting at offset %llu, step size %llu)\n",
                static_cast<unsigned long long>(options.offset),
                static_cast<unsigned long long>(options.step_bytes));
  }
  if (options.flush_interval > 0) {
    std::printf("Sending flush every %llu requests\n",
                static_cast<unsigned long long>(options.flush_interval));
  }
  std::fflush(stdout);
}

absl::Status run_once(const BenchTarget& target, const BenchOptions& options) {
  absl::StatusOr<std::unique_ptr<BenchSession>> session =
      BenchSession::open(target);
  if (!session.ok()) return session.status();
  print_start(options);
  const absl::StatusOr<BenchResult> result =
      run_bench((*session)->device(), options);
  if (!result.ok()) {
    return absl::Status(
        result.status().code(),
        absl::StrCat("Failed request: ", result.status().message()));
  }
  std::printf("Run completed in %3.3f seconds.\n", result->seconds);
  return (*session)->close();
}

int run_command(const BenchArguments& arguments) {
  const absl::StatusOr<BenchOptions> options = read_options(arguments);
  if (!options.ok()) return fail(options.status().message());
  const absl::StatusOr<BenchTarget> target = read_target(arguments);
  if (!target.ok()) return fail(target.status().message());
  absl::Status status = check_aio(arguments);
  if (!status.ok()) return fail(status.message());
  if (!arguments.sweep) {
    status = run_once(*target, *options);
  } else {
    SweepOptions sweep;
    sweep.bench = *options;
    if (!arguments.count_given) sweep.bench.request_count = kSweepRequestCount;
    if (arguments.threads > 0) sweep.widths = {arguments.threads};
    status = run_sweep(*target, sweep);
  }
  return status.ok() ? 0 : fail(status.message());
}

}  // namespace

Command add_bench_command(CLI::App* app) {
  auto arguments = std::make_shared<BenchArguments>();
  BenchArguments& a = *arguments;
  CLI::App* bench =
      app->add_subcommand("bench", "Measure requests to an image");
  bench->add_option("filename", a.filename, "the image")->required();
  CLI::Option* count =
      bench->add_option("-c,--count", a.count, "how many requests (75000)");
  bench->add_option("-d,--depth", a.depth, "how many at a time (64)");
  bench->add_option("-f,--format", a.format,
                    "the image's format; guessed if not stated");
  bench->add_option("--flush-interval", a.flush_interval,
                    "flush after so many writes");
  bench->add_option(
      "-i", a.aio,
      "threads, native or io_uring: accepted, the thread pool is used");
  bench->add_flag("-n", a.native, "as -i native");
  bench->add_flag("--no-drain", a.no_drain,
                  "do not wait for the writes before a flush");
  bench->add_option("-o,--offset", a.offset, "where the first request goes");
  bench->add_option("--pattern", a.pattern, "the byte that is written");
  bench->add_flag("-q,--quiet", a.quiet, "print no notes");
  bench->add_option("-s,--buffer-size", a.buffer_size,
                    "bytes in one request (4096)");
  bench->add_option(
      "-S,--step-size", a.step_size,
      "from one request's offset to the next one's (the buffer size)");
  bench->add_option(
      "-t", a.cache,
      "cache mode: none, writeback, unsafe, directsync, writethrough");
  bench->add_flag("-w", a.write, "write instead of read");
  bench->add_flag("-U,--force-share", a.force_share,
                  "read also while somebody else writes");
  bench->add_option("--threads", a.threads,
                    "how many requests the pool runs at a time");
  bench->add_flag("--random", a.random, "at random offsets");
  bench->add_option("--seed", a.seed, "of the random offsets (1)");
  bench->add_flag(
      "--inline", a.run_in_place,
      "requests that cannot block may run in the submitting thread");
  bench->add_flag("--sweep", a.sweep,
                  "a table over queue depths and pool widths");
  return [arguments, count] {
    arguments->count_given = count->count() > 0;
    return run_command(*arguments);
  };
}

}  // namespace spindle

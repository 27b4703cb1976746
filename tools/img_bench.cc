// spindle-img bench: measure an image through the asynchronous interface, with
// the options and the lines of qemu-img bench.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/errors.h"
#include "tools/bench_runner.h"
#include "tools/bench_session.h"
#include "tools/bench_sweep.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"

namespace spindle {
namespace {

constexpr uint64_t kInt = std::numeric_limits<int32_t>::max();

struct BenchArguments {
  BenchTarget target;
  BenchOptions options;
  std::string aio;
  std::string cache = "writeback";
  std::optional<uint64_t> step_size;
  bool sweep = false;
  std::string picture;  // of a sweep
  bool count_given = false;
};

// As C programs read numbers: decimal, "0x..." or "0...".
uint64_t number_or_exit(const char* text, uint64_t limit, const char* what) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 0);
  if (errno != 0 || end == text || *end != '\0' || *text == '-' ||
      value > limit) {
    exit_with(absl::StrCat("Invalid ", what, " specified"));
  }
  return value;
}

// A size that fits in an int.
uint64_t int_size_or_exit(const char* what, const char* text) {
  const uint64_t size = size_or_exit(what, text);
  if (size <= kInt) return size;
  exit_with(absl::StrCat("Invalid ", what, " specified. Must be between 0 and ",
                         kInt, "."));
}

int check(BenchArguments* arguments) {
  BenchOptions& options = arguments->options;
  if (options.flush_interval > 0 && !options.write)
    return fail("--flush-interval is only available in write tests");
  if (options.flush_interval > 0 && options.flush_interval < options.depth)
    return fail("Flush interval can't be smaller than depth");
  if (!arguments->picture.empty() && !arguments->sweep)
    return fail("--picture is only available with --sweep");
  options.step_bytes = arguments->step_size.value_or(options.request_bytes);
  if (options.step_bytes == 0) options.step_bytes = options.request_bytes;
  BenchTarget& target = arguments->target;
  target.read_only = !options.write;
  // The engine has one way to run requests; scripts name others.
  if (arguments->aio == "native" && target.cache_mode != CacheMode::kNone &&
      target.cache_mode != CacheMode::kDirectsync) {
    return fail_to_open(
        target.image.name,
        absl::InvalidArgumentError(
            "aio=native was specified, but it requires cache.direct=on, which "
            "was not specified."));
  }
  return 0;
}

std::string aio_or_exit(const std::string& name) {
  if (name == "threads" || name == "native" || name == "io_uring") return name;
  exit_with(absl::StrCat("Invalid aio option: ", name));
}

CacheMode cache_or_exit(const char* name) {
  const std::optional<CacheMode> mode = cache_mode_of(name);
  if (!mode.has_value()) exit_with("Invalid cache mode");
  return *mode;
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

int run_once(const BenchTarget& target, const BenchOptions& options) {
  absl::StatusOr<std::unique_ptr<BenchSession>> session =
      BenchSession::open_or_complain(target);
  if (!session.ok()) return fail(qemu_words(session.status()));
  if (*session == nullptr) return 1;
  print_start(options);
  const absl::StatusOr<BenchResult> result =
      run_bench((*session)->device(), options);
  if (!result.ok()) {
    const bool is_beyond = absl::IsOutOfRange(result.status());
    return fail(absl::StrCat(
        "Failed request: ",
        std::strerror(is_beyond ? EIO : errno_for(result.status()))));
  }
  std::printf("Run completed in %3.3f seconds.\n", result->seconds);
  const absl::Status closed = (*session)->close();
  return closed.ok() ? 0 : fail(qemu_words(closed));
}

int run(const BenchArguments& arguments) {
  if (!arguments.sweep) return run_once(arguments.target, arguments.options);
  SweepOptions sweep;
  sweep.bench = arguments.options;
  sweep.picture = arguments.picture;
  if (!arguments.count_given) sweep.bench.request_count = kSweepRequestCount;
  if (arguments.target.threads.has_value())
    sweep.widths = {*arguments.target.threads};
  const absl::Status status = run_sweep(arguments.target, sweep);
  return status.ok() ? 0 : fail(qemu_words(status));
}

}  // namespace

int run_bench(int argc, char** argv) {
  constexpr uint64_t kByte = 0xff;
  BenchArguments arguments;
  BenchTarget& target = arguments.target;
  BenchOptions& options = arguments.options;
  options.request_count = 75000;
  options.depth = 64;
  options.request_bytes = 4096;
  OptionReader reader(
      argc, argv, "c:d:f:i:no:qs:S:t:wU",
      {{"flush-interval", required_argument, nullptr, kOptionFlushInterval},
       {"pattern", required_argument, nullptr, kOptionPattern},
       {"no-drain", no_argument, nullptr, kOptionNoDrain},
       {"image-opts", no_argument, nullptr, kOptionImageOpts},
       {"force-share", no_argument, nullptr, 'U'},
       {"threads", required_argument, nullptr, kOptionThreads},
       {"random", no_argument, nullptr, kOptionRandom},
       {"seed", required_argument, nullptr, kOptionSeed},
       {"inline", no_argument, nullptr, kOptionInline},
       {"sweep", no_argument, nullptr, kOptionSweep},
       {"picture", required_argument, nullptr, kOptionPicture}});
  while (const std::optional<int> found = reader.next()) {
    const char* const text = reader.argument();
    switch (*found) {
      case 'c':
        options.request_count = number_or_exit(text, kInt, "request count");
        arguments.count_given = true;
        break;
      case 'd':
        options.depth = number_or_exit(text, kInt, "queue depth");
        if (options.depth == 0) exit_with("Invalid queue depth specified");
        break;
      case 'f':
        target.image.format = text;
        break;
      case 'i':
        arguments.aio = aio_or_exit(text);
        break;
      case 'n':
        arguments.aio = "native";
        break;
      case 'o':
        options.offset = size_or_exit("offset", text);
        break;
      case 's':
        options.request_bytes = int_size_or_exit("buffer size", text);
        break;
      case 'S':
        arguments.step_size = int_size_or_exit("step_size", text);
        break;
      case 't':
        target.cache_mode = cache_or_exit(text);
        break;
      case 'w':
        options.write = true;
        break;
      case 'U':
        target.force_share = true;
        break;
      case kOptionPattern:
        options.pattern =
            static_cast<uint8_t>(number_or_exit(text, kByte, "pattern byte"));
        break;
      case kOptionFlushInterval:
        options.flush_interval = number_or_exit(text, kInt, "flush interval");
        break;
      case kOptionNoDrain:
        options.drain_on_flush = false;
        break;
      case kOptionThreads:
        target.threads = number_or_exit(text, kInt, "number of threads");
        break;
      case kOptionRandom:
        options.random = true;
        break;
      case kOptionSeed:
        options.seed = number_or_exit(text, ~uint64_t{0}, "seed");
        break;
      case kOptionInline:
        target.run_in_place = true;
        break;
      case kOptionPicture:
        arguments.picture = text;
        break;
      case kOptionSweep:
        arguments.sweep = true;
        break;
      default:  // -q: there is nothing to be quiet about
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  target.image.name = reader.operands()[0];
  target.image.image_opts = reader.image_opts();
  target.secrets = reader.secrets();
  const int code = check(&arguments);
  return code != 0 ? code : run(arguments);
}

}  // namespace spindle

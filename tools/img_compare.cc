// spindle-img compare: whether a guest sees the same of two images.
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/jobs/compare.h"
#include "engine/jobs/job_options.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/progress.h"

namespace spindle {
namespace {

// The exit codes of `qemu-img compare`.
constexpr int kIdentical = 0;
constexpr int kDifferent = 1;
constexpr int kCannotOpen = 2;
constexpr int kStatusFailed = 3;
constexpr int kReadFailed = 4;

struct CompareArguments {
  ImageArgument images[2];
  CacheMode cache = CacheMode::kWriteback;
  bool force_share = false;
  bool strict = false;
  bool quiet = false;
  bool progress = false;
};

std::unique_ptr<BlockDevice> open_device(const CompareArguments& arguments,
                                         const ImageArgument& image,
                                         const ImageOpener& opener,
                                         Executor* executor) {
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments.force_share;
  apply_cache_mode(arguments.cache, &options);
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener, image, options);
  if (driver == nullptr) return nullptr;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      BlockDevice::create(std::move(driver), executor);
  if (device.ok()) return *std::move(device);
  fail_to_open(image.name, device.status());
  return nullptr;
}

int report(const CompareArguments& arguments, const CompareResult& result) {
  const auto say = [&arguments](const std::string& text) {
    if (!arguments.quiet) std::printf("%s\n", text.c_str());
  };
  if (result.reached_longer_part) say("Warning: Image size mismatch!");
  const std::string& name = arguments.images[result.failed_image].name;
  switch (result.kind) {
    case CompareResult::Kind::kIdentical:
      say("Images are identical.");
      return kIdentical;
    case CompareResult::Kind::kLengthMismatch:
      say("Strict mode: Image size mismatch!");
      return kDifferent;
    case CompareResult::Kind::kStatusMismatch:
      say(absl::StrCat("Strict mode: Offset ", result.offset,
                       " block status mismatch!"));
      return kDifferent;
    case CompareResult::Kind::kContentMismatch:
      say(absl::StrCat("Content mismatch at offset ", result.offset, "!"));
      return kDifferent;
    case CompareResult::Kind::kStatusFailed:
      fail(absl::StrCat("Sector allocation test failed for ", name));
      return kStatusFailed;
    case CompareResult::Kind::kReadFailed:
      fail(absl::StrCat("Error while reading offset ", result.offset, " of ",
                        name, ": ", std::strerror(errno_for(result.failure))));
      return kReadFailed;
    case CompareResult::Kind::kCancelled:
      break;
  }
  return kDifferent;
}

int run(const CompareArguments& arguments, const ImageOpener& opener) {
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = kJobWidth});
  if (!executor.ok()) {
    fail(executor.status().message());
    return kCannotOpen;
  }
  const std::unique_ptr<BlockDevice> first =
      open_device(arguments, arguments.images[0], opener, executor->get());
  if (first == nullptr) return kCannotOpen;
  const std::unique_ptr<BlockDevice> second =
      open_device(arguments, arguments.images[1], opener, executor->get());
  if (second == nullptr) return kCannotOpen;
  Progress progress(arguments.progress && !arguments.quiet);
  CompareOptions options;
  options.strict = arguments.strict;
  options.job.executor = executor->get();
  options.job.progress = [&progress](uint64_t done, uint64_t total) {
    progress.report(done, total);
  };
  const int code = report(arguments, compare_images(*first, *second, options));
  progress.end_line();
  return code;
}

}  // namespace

int run_compare(int argc, char** argv) {
  CompareArguments arguments;
  std::string cache = "writeback";
  OptionReader reader(argc, argv, "f:F:T:pqsU",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.images[0].format = reader.argument();
        break;
      case 'F':
        arguments.images[1].format = reader.argument();
        break;
      case 'T':
        cache = reader.argument();
        break;
      case 'p':
        arguments.progress = true;
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case 's':
        arguments.strict = true;
        break;
      case 'U':
        arguments.force_share = true;
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 2)
    exit_with_usage("Expecting two image file names");
  for (int i = 0; i < 2; ++i) {
    arguments.images[i].name = reader.operands()[static_cast<size_t>(i)];
    arguments.images[i].image_opts = reader.image_opts();
  }
  const std::optional<CacheMode> mode = cache_mode_of(cache);
  if (!mode.has_value()) {
    fail(absl::StrCat("Invalid source cache option: ", cache));
    return kCannotOpen;
  }
  arguments.cache = *mode;
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

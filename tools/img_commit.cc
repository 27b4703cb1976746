// spindle-img commit: move what an overlay has into its backing file.
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/jobs/backing_chain.h"
#include "engine/jobs/commit.h"
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

struct CommitArguments {
  ImageArgument image;
  std::optional<std::string> base;
  CacheMode cache = CacheMode::kWriteback;
  uint64_t bytes_per_second = 0;
  bool keeps_content = false;
  bool quiet = false;
  bool progress = false;
};

// Makes the base writable, and moves what is above it.
absl::Status commit(const CommitArguments& arguments, const ChainPlace& base,
                    BlockDevice& top, Executor* executor) {
  absl::Status status = base.driver->reopen({.read_only = false});
  if (!status.ok()) return status;
  BlockDeviceOptions device_options;
  device_options.cache_mode = arguments.cache;
  const absl::StatusOr<std::unique_ptr<BlockDevice>> below =
      BlockDevice::create(base.driver, executor, device_options);
  if (!below.ok()) return below.status();
  Progress progress(arguments.progress && !arguments.quiet);
  CommitOptions options;
  options.bytes_per_second = arguments.bytes_per_second;
  options.job.executor = executor;
  options.job.progress = [&progress](uint64_t done, uint64_t total) {
    progress.report(done, total);
  };
  status = commit_layers(top, **below, base.layers_above, options);
  if (status.ok() && !arguments.keeps_content &&
      top.driver().capabilities().has(Capability::kMakeEmpty)) {
    status =
        with_contexts(top.driver().make_empty(),
                      absl::StrCat("Could not empty ", arguments.image.name),
                      absl::StrCat("Could not empty ", arguments.image.name));
  }
  if (status.ok()) {
    progress.finish();
  } else {
    progress.end_line();
  }
  return status;
}

int run(const CommitArguments& arguments, const ImageOpener& opener) {
  OpenOptions options = tool_open_options();
  apply_cache_mode(arguments.cache, &options);
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener, arguments.image, options);
  if (driver == nullptr) return 1;
  const std::string& name = arguments.image.name;
  ChainPlace base{driver->backing(), 1};
  if (arguments.base.has_value()) {
    base = find_in_chain(*driver, *arguments.base);
    if (base.driver == nullptr) {
      return fail(absl::StrCat("Did not find '", *arguments.base,
                               "' in the backing chain of '", name, "'"));
    }
  } else if (base.driver == nullptr) {
    return fail("Image does not have a backing file");
  }
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = kJobWidth});
  if (!executor.ok()) return fail(executor.status().message());
  BlockDeviceOptions device_options;
  device_options.cache_mode = arguments.cache;
  const absl::StatusOr<std::unique_ptr<BlockDevice>> top =
      BlockDevice::create(std::move(driver), executor->get(), device_options);
  if (!top.ok()) return fail_to_open(name, top.status());
  absl::Status status = commit(arguments, base, **top, executor->get());
  const absl::Status closed = (*top)->close();
  if (status.ok()) status = closed;
  if (!status.ok()) return fail(qemu_words(status));
  if (!arguments.quiet) std::printf("Image committed.\n");
  return 0;
}

}  // namespace

int run_commit(int argc, char** argv) {
  CommitArguments arguments;
  std::string cache = "writeback";
  OptionReader reader(argc, argv, "f:t:b:dpqr:",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 't':
        cache = reader.argument();
        break;
      case 'b':
        // An image in between that became empty would show another disk.
        arguments.base = reader.argument();
        arguments.keeps_content = true;
        break;
      case 'd':
        arguments.keeps_content = true;
        break;
      case 'p':
        arguments.progress = true;
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case 'r':
        arguments.bytes_per_second =
            size_or_exit("rate limit", reader.argument());
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  const std::optional<CacheMode> mode = cache_mode_of(cache);
  if (!mode.has_value())
    return fail(absl::StrCat("Invalid cache option: ", cache));
  arguments.cache = *mode;
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

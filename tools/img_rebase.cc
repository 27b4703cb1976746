// spindle-img rebase: give an image another backing file.
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
#include "engine/image_name.h"
#include "engine/image_opener.h"
#include "engine/jobs/backing_chain.h"
#include "engine/jobs/job_options.h"
#include "engine/jobs/rebase.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/progress.h"

namespace spindle {
namespace {

struct RebaseArguments {
  ImageArgument image;
  std::optional<std::string> backing_filename;
  std::optional<std::string> backing_format;
  CacheMode cache = CacheMode::kWriteback;
  CacheMode source_cache = CacheMode::kWriteback;
  bool unsafe = false;
  bool force_share = false;
  bool quiet = false;
  bool progress = false;
};

using Device = std::unique_ptr<BlockDevice>;

// Says what is wrong, and returns false.
bool say(const absl::Status& status) {
  if (!status.ok()) fail(qemu_words(status));
  return status.ok();
}

bool make_device(std::shared_ptr<BlockDriver> driver, CacheMode cache,
                 Executor* executor, Device* device) {
  BlockDeviceOptions options;
  options.cache_mode = cache;
  absl::StatusOr<Device> made =
      BlockDevice::create(std::move(driver), executor, options);
  if (made.ok()) *device = *std::move(made);
  return say(made.status());
}

class Rebaser {
 public:
  Rebaser(const RebaseArguments& arguments, const ImageOpener& opener,
          Executor* executor)
      : arguments_(arguments), opener_(opener), executor_(executor) {}

  int run();

 private:
  bool open_overlay();
  // The two backing files, of which either may be none.
  bool open_backings();
  bool open_new_backing();
  bool copy_differences();
  bool change_backing_file();

  const RebaseArguments& arguments_;
  const ImageOpener& opener_;
  Executor* const executor_;
  Device overlay_;
  Device old_backing_;
  Device new_backing_;
  bool owns_new_ = false;
  int layers_above_new_ = 0;
};

bool Rebaser::open_overlay() {
  OpenOptions options = tool_open_options();
  options.open_backing = !arguments_.unsafe;
  apply_cache_mode(arguments_.cache, &options);
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener_, arguments_.image, options);
  return driver != nullptr &&
         make_device(std::move(driver), arguments_.cache, executor_, &overlay_);
}

bool Rebaser::open_new_backing() {
  const std::string& name = *arguments_.backing_filename;
  const std::string path = resolve_backing_filename(
      NameSyntax::kQemu, overlay_->driver().filename(), name);
  // A file of the chain is not opened twice.
  const ChainPlace below = find_in_chain(overlay_->driver(), name);
  if (below.driver != nullptr) {
    layers_above_new_ = below.layers_above - 1;
    return make_device(below.driver, arguments_.source_cache, executor_,
                       &new_backing_);
  }
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments_.force_share;
  apply_cache_mode(arguments_.source_cache, &options);
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      opener_.open(path, arguments_.backing_format.value_or(""), options);
  if (!driver.ok()) {
    fail(absl::StrCat("Could not open new backing file '", name,
                      "': ", qemu_words(driver.status())));
    return false;
  }
  owns_new_ = true;
  return make_device(*std::move(driver), arguments_.source_cache, executor_,
                     &new_backing_);
}

bool Rebaser::open_backings() {
  std::shared_ptr<BlockDriver> old = overlay_->driver().backing();
  if (old != nullptr && !make_device(std::move(old), arguments_.source_cache,
                                     executor_, &old_backing_)) {
    return false;
  }
  return arguments_.backing_filename->empty() || open_new_backing();
}

bool Rebaser::copy_differences() {
  Progress progress(arguments_.progress && !arguments_.quiet);
  RebaseOptions options;
  options.layers_above_new = layers_above_new_;
  options.job.executor = executor_;
  options.job.progress = [&progress](uint64_t done, uint64_t total) {
    progress.report(done, total);
  };
  const absl::Status status = prepare_rebase(*overlay_, old_backing_.get(),
                                             new_backing_.get(), options);
  progress.end_line();
  return say(status);
}

bool Rebaser::change_backing_file() {
  const std::string name = arguments_.backing_filename.value_or("");
  const std::string format =
      name.empty() ? "" : arguments_.backing_format.value_or("");
  const auto refuse = [&name](absl::string_view why) {
    fail(absl::StrCat("Could not change the backing file to '", name,
                      "': ", why));
    return false;
  };
  if (!name.empty() && format.empty())
    return refuse("backing format must be specified");
  const absl::Status status =
      overlay_->driver().change_backing_file(name, format);
  if (status.ok()) return true;
  return refuse(absl::IsResourceExhausted(status) &&
                        !errno_of(status).has_value()
                    ? "No space left in the file header"
                    : std::strerror(errno_for(status)));
}

int Rebaser::run() {
  if (!open_overlay()) return 1;
  const std::optional<std::string>& format = arguments_.backing_format;
  if (format.has_value() && builtin_drivers().find_format(*format) == nullptr &&
      builtin_drivers().find_protocol(*format) == nullptr) {
    return fail(absl::StrCat("Invalid format name: '", *format, "'"));
  }
  bool good = arguments_.unsafe || (open_backings() && copy_differences());
  good = good && change_backing_file();
  if (owns_new_) new_backing_->close().IgnoreError();  // it was only read
  const absl::Status closed = overlay_->close();
  return good && say(closed) ? 0 : 1;
}

int run(const RebaseArguments& arguments, const ImageOpener& opener) {
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = kJobWidth});
  if (!executor.ok()) return fail(executor.status().message());
  return Rebaser(arguments, opener, executor->get()).run();
}

}  // namespace

int run_rebase(int argc, char** argv) {
  RebaseArguments arguments;
  std::string cache = "writeback";
  std::string source_cache = "writeback";
  OptionReader reader(argc, argv, "f:F:b:upt:T:qU",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'F':
        arguments.backing_format = reader.argument();
        break;
      case 'b':
        arguments.backing_filename = reader.argument();
        break;
      case 'u':
        arguments.unsafe = true;
        break;
      case 'p':
        arguments.progress = true;
        break;
      case 't':
        cache = reader.argument();
        break;
      case 'T':
        source_cache = reader.argument();
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case 'U':
        arguments.force_share = true;
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  if (!arguments.unsafe && !arguments.backing_filename.has_value()) {
    exit_with_usage("Must specify backing file (-b) or use unsafe mode (-u)");
  }
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  const std::optional<CacheMode> mode = cache_mode_of(cache);
  if (!mode.has_value())
    return fail(absl::StrCat("Invalid cache option: ", cache));
  const std::optional<CacheMode> source_mode = cache_mode_of(source_cache);
  if (!source_mode.has_value())
    return fail(absl::StrCat("Invalid source cache option: ", source_cache));
  arguments.cache = *mode;
  arguments.source_cache = *source_mode;
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

// spindle-img convert: copy an image's content into a new image.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "threadpool/executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_copier.h"
#include "tools/new_file.h"
#include "tools/progress_bar.h"

namespace spindle {
namespace {

// As qemu-img allows.
constexpr size_t kMaxCoroutines = 16;

struct ConvertArguments {
  std::string source;
  std::string target;
  std::string source_format;
  std::string target_format = "raw";
  std::vector<std::string> options;
  size_t coroutines = 8;
  bool compress = false;
  bool out_of_order = false;
  bool progress = false;
  bool quiet = false;
};

absl::StatusOr<std::unique_ptr<BlockDevice>> open_device(
    const ImageOpener& opener, const std::string& filename,
    const std::string& format, bool read_only, Executor* executor) {
  OpenOptions options;
  options.read_only = read_only;
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      opener.open(filename, format, options);
  BlockDeviceOptions device_options;
  // Compression is work for every processor.
  device_options.max_workers = executor->width();
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      driver.ok()
          ? BlockDevice::create(*std::move(driver), executor, device_options)
          : driver.status();
  if (!device.ok()) {
    return with_context(device.status(),
                        absl::StrCat("Could not open '", filename, "'"));
  }
  return device;
}

absl::Status check_target(const ConvertArguments& arguments,
                          const BlockDevice& target, uint64_t length_bytes) {
  if (arguments.compress &&
      !target.driver().capabilities().has(Capability::kWriteCompressed)) {
    return absl::UnimplementedError(
        "Compression not supported for this file format");
  }
  if (target.length_bytes() >= length_bytes) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the new image has ",
                                          target.length_bytes(), " bytes, not ",
                                          length_bytes));
}

absl::Status copy(const ConvertArguments& arguments, BlockDevice& source,
                  BlockDevice& target) {
  ProgressBar bar;
  CopyOptions options;
  options.compress = arguments.compress;
  options.in_order = !arguments.out_of_order;
  options.max_pieces = arguments.coroutines;
  if (arguments.progress && !arguments.quiet) {
    options.progress = [&](double fraction) { bar.update(fraction, "copied"); };
  }
  return copy_image(source, target, options);
}

// Makes the target and fills it.
absl::Status convert(const ConvertArguments& arguments,
                     const ImageOpener& opener, CreateOptions create,
                     BlockDevice& source, Executor* executor) {
  const uint64_t length = align_up(source.length_bytes(), kSectorSizeBytes);
  create.size_bytes = length;
  absl::Status status =
      opener.create(arguments.target, arguments.target_format, create);
  if (!status.ok()) {
    return with_context(
        status, absl::StrCat(arguments.target, ": error while converting ",
                             arguments.target_format));
  }
  absl::StatusOr<std::unique_ptr<BlockDevice>> target =
      open_device(opener, arguments.target, arguments.target_format,
                  /*read_only=*/false, executor);
  if (!target.ok()) return target.status();
  status = check_target(arguments, **target, length);
  if (status.ok()) status = copy(arguments, source, **target);
  const absl::Status closed = (*target)->close();
  return status.ok() ? closed : status;
}

absl::StatusOr<CreateOptions> read_options(const ConvertArguments& arguments) {
  CreateOptions create;
  for (const std::string& text : arguments.options) {
    for (const auto& [name, value] : parse_option_list(text).options)
      create.options[name] = value;
  }
  for (const char* name : {"size", "backing_file", "backing_fmt"}) {
    if (create.options.contains(name)) {
      return absl::UnimplementedError(
          absl::StrCat("option '", name, "' is not supported by convert"));
    }
  }
  return create;
}

int print_option_help(const ConvertArguments& arguments,
                      const ImageFormat& format) {
  std::printf("Supported %s options:\n%s", arguments.target_format.c_str(),
              describe_options(format.create_options()).c_str());
  return 0;
}

int run_convert(const ConvertArguments& arguments) {
  const ImageFormat* format =
      builtin_drivers().find_format(arguments.target_format);
  if (format == nullptr) {
    return fail(
        absl::StrCat("Unknown file format '", arguments.target_format, "'"));
  }
  for (const std::string& text : arguments.options) {
    if (parse_option_list(text).help)
      return print_option_help(arguments, *format);
  }
  if (arguments.source.empty() || arguments.target.empty())
    return fail("Must specify image file name");
  if (arguments.coroutines < 1 || arguments.coroutines > kMaxCoroutines) {
    return fail(absl::StrCat(
        "Invalid number of coroutines. Allowed number of coroutines is between "
        "1 and ",
        kMaxCoroutines));
  }
  absl::StatusOr<CreateOptions> create = read_options(arguments);
  if (!create.ok()) return fail(create.status().message());

  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor({});
  if (!executor.ok()) return fail(executor.status().message());
  ImageOpener::Policy policy;
  policy.probe_image = arguments.source_format.empty();
  const ImageOpener opener(builtin_drivers(), policy);
  absl::StatusOr<std::unique_ptr<BlockDevice>> source =
      open_device(opener, arguments.source, arguments.source_format,
                  /*read_only=*/true, executor->get());
  if (!source.ok()) return fail(source.status().message());

  // A limit on the size of files is an error like any other: the process must
  // live to clean up.
  std::signal(SIGXFSZ, SIG_IGN);
  NewFile file(arguments.target);
  absl::Status status =
      convert(arguments, opener, *std::move(create), **source, executor->get());
  const absl::Status closed = (*source)->close();
  if (status.ok()) status = closed;
  if (!status.ok()) return fail(status.message());
  file.keep();
  return 0;
}

}  // namespace

Command add_convert_command(CLI::App* app) {
  auto arguments = std::make_shared<ConvertArguments>();
  CLI::App* convert =
      app->add_subcommand("convert", "Copy an image into a new one");
  convert->add_option("source", arguments->source, "the image to copy");
  convert->add_option("target", arguments->target, "the new image");
  convert->add_option("-f", arguments->source_format,
                      "the source's format; guessed if not stated");
  convert->add_option("-O", arguments->target_format,
                      "the new image's format (raw)");
  convert
      ->add_option("-o", arguments->options,
                   "options of the new image as name=value,...; \"help\" lists "
                   "them")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  convert->add_flag("-c", arguments->compress, "compress the data");
  convert->add_flag("-W", arguments->out_of_order,
                    "write in any order, which is faster");
  convert->add_option("-m", arguments->coroutines,
                      "pieces that are copied at one time (8)");
  convert->add_flag("-p", arguments->progress, "show how far it is");
  convert->add_flag("-q", arguments->quiet, "print nothing");
  return [arguments] { return run_convert(*arguments); };
}

}  // namespace spindle

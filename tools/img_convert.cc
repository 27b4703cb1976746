// spindle-img convert: copy an image's content into a new image.
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/dirty_bitmap.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "formats/crypto/encrypt_options.h"
#include "threadpool/default_executor.h"
#include "threadpool/executor.h"
#include "tools/bitmap_copier.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_copier.h"
#include "tools/image_opts.h"
#include "tools/new_file.h"
#include "tools/object_option.h"
#include "tools/progress_bar.h"
#include "tools/sector_status.h"

namespace spindle {
namespace {

// As qemu-img allows.
constexpr size_t kMaxCoroutines = 16;

// As qemu-img allows.
constexpr uint64_t kMaxSparseBytes = uint64_t{16} << 20;

struct ConvertArguments {
  std::string source;
  std::string target;
  std::string source_format;
  std::string snapshot;
  std::string target_format = "raw";
  std::vector<std::string> options;
  size_t coroutines = 8;
  std::string backing_filename;
  std::string backing_format;
  std::string min_zeroes;
  std::string rate_limit;
  std::string source_cache = "writeback";
  std::string target_cache = "unsafe";
  std::vector<std::string> objects;
  bool image_opts = false;
  bool force_share = false;
  bool skip_create = false;
  bool target_is_zero = false;
  bool compress = false;
  bool out_of_order = false;
  bool bitmaps = false;
  bool skip_broken_bitmaps = false;
  bool progress = false;
  bool quiet = false;
};

// "snapshot.id=1,snapshot.name=a", or an id or a name.
std::optional<SnapshotChoice> chosen_snapshot(const std::string& text) {
  if (text.empty()) return std::nullopt;
  if (!absl::StartsWith(text, "snapshot.")) return {{.id_or_name = text}};
  SnapshotChoice choice;
  for (const auto& [name, value] : parse_option_list(text).options) {
    if (name == "snapshot.id") choice.id = value;
    if (name == "snapshot.name") choice.name = value;
  }
  return choice;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> open_device(
    const ImageOpener& opener, const std::string& filename,
    const std::string& format, bool image_opts, OpenOptions options,
    CacheMode cache_mode, Executor* executor) {
  apply_cache_mode(cache_mode, &options);
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver = open_image(
      opener, {.name = filename, .format = format, .image_opts = image_opts},
      options);
  BlockDeviceOptions device_options;
  // Compression is work for every processor.
  device_options.max_workers = executor->width();
  device_options.cache_mode = cache_mode;
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

// What the arguments come to.
struct ConvertPlan {
  CreateOptions create;
  CopyOptions copy;
  CacheMode source_cache;
  CacheMode target_cache;
};

absl::Status check_target(const ConvertArguments& arguments,
                          const BlockDevice& target, uint64_t length_bytes) {
  if (arguments.compress &&
      !target.driver().capabilities().has(Capability::kWriteCompressed)) {
    return absl::UnimplementedError(
        "Compression not supported for this file format");
  }
  if (whole_sectors_bytes(target) >= length_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError("output file is smaller than input file");
}

// A new file reads as zeroes; what else is there does not.
bool is_block_device(const std::string& filename) {
  struct stat facts = {};
  return ::stat(filename.c_str(), &facts) == 0 && S_ISBLK(facts.st_mode);
}

absl::Status copy(const ConvertArguments& arguments,
                  const CreateOptions& create, CopyOptions options,
                  BlockDevice& source, BlockDevice& target) {
  ProgressBar bar;
  options.compress = arguments.compress;
  options.in_order = !arguments.out_of_order;
  options.max_pieces = arguments.coroutines;
  const bool is_new = !arguments.skip_create &&
                      !is_block_device(arguments.target) &&
                      builtin_drivers()
                          .find_format(arguments.target_format)
                          ->new_images_read_as_zeroes(create);
  options.target_reads_as_zeroes =
      !options.target_has_backing && (is_new || arguments.target_is_zero);
  if (arguments.progress && !arguments.quiet) {
    options.progress = [&](double fraction) { bar.update(fraction, "copied"); };
  }
  return copy_image(source, target, options);
}

// Makes the target and fills it.
absl::Status convert(const ConvertArguments& arguments,
                     const ImageOpener& opener, ConvertPlan plan,
                     BlockDevice& source, Executor* executor) {
  absl::StatusOr<std::vector<DirtyBitmapInfo>> bitmaps =
      std::vector<DirtyBitmapInfo>();
  if (arguments.bitmaps)
    bitmaps = find_bitmaps(source.driver(), arguments.skip_broken_bitmaps);
  if (!bitmaps.ok()) return bitmaps.status();
  const uint64_t length = whole_sectors_bytes(source);
  plan.create.size_bytes = length;
  absl::Status status;
  if (!arguments.skip_create) {
    status =
        opener.create(arguments.target, arguments.target_format, plan.create);
  }
  if (!status.ok()) {
    return with_context(
        status, absl::StrCat(arguments.target, ": error while converting ",
                             arguments.target_format));
  }
  OpenOptions target_options = tool_open_options();
  add_key_secrets(plan.create.options, &target_options.driver_options);
  absl::StatusOr<std::unique_ptr<BlockDevice>> target =
      open_device(opener, arguments.target, arguments.target_format,
                  /*image_opts=*/false, std::move(target_options),
                  plan.target_cache, executor);
  if (!target.ok()) return target.status();
  status = check_target(arguments, **target, length);
  BlockDriver& target_driver = (*target)->driver();
  if (status.ok()) status = add_bitmaps(*bitmaps, target_driver);
  if (status.ok())
    status = copy(arguments, plan.create, plan.copy, source, **target);
  if (status.ok())
    status = fill_bitmaps(*bitmaps, source.driver(), target_driver);
  const absl::Status closed = (*target)->close();
  return status.ok() ? closed : status;
}

absl::StatusOr<CreateOptions> read_create_options(
    const ConvertArguments& arguments) {
  CreateOptions create;
  create.backing_filename = arguments.backing_filename;
  create.backing_format = arguments.backing_format;
  for (const std::string& text : arguments.options) {
    for (const auto& [name, value] : parse_option_list(text).options) {
      if (name == "backing_file") {
        create.backing_filename = value;
      } else if (name == "backing_fmt") {
        create.backing_format = value;
      } else if (name == "size") {
        return absl::UnimplementedError(
            "option 'size' is not supported by convert");
      } else {
        create.options[name] = value;
      }
    }
  }
  if (arguments.skip_create) {
    if (!arguments.options.empty()) {
      return absl::InvalidArgumentError(
          "-o has no effect when skipping image creation");
    }
    return create;
  }
  if (arguments.target_is_zero) {
    return absl::InvalidArgumentError(
        "--target-is-zero requires use of -n flag");
  }
  if (!create.backing_filename.empty() && create.backing_format.empty()) {
    return absl::InvalidArgumentError(
        "Use of backing file requires explicit backing format");
  }
  const ImageFormat* format =
      builtin_drivers().find_format(arguments.target_format);
  if (!create.backing_filename.empty() && !format->supports_backing()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Backing file not supported for file format '",
                     arguments.target_format, "'"));
  }
  return create;
}

absl::Status read_copy_options(const ConvertArguments& arguments,
                               CopyOptions* copy) {
  if (!arguments.min_zeroes.empty()) {
    const auto bytes =
        parse_size_named("buffer size for sparse output", arguments.min_zeroes);
    if (!bytes.ok()) return bytes.status();
    if (*bytes % kSectorSizeBytes != 0 || *bytes > kMaxSparseBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Invalid buffer size for sparse output specified. Valid sizes are "
          "multiples of ",
          kSectorSizeBytes, " up to ", kMaxSparseBytes,
          ". Select 0 to disable sparse detection (fully allocates output)."));
    }
    copy->min_zeroes_bytes = *bytes;
  }
  if (!arguments.rate_limit.empty()) {
    const auto rate = parse_size_named("rate limit", arguments.rate_limit);
    if (!rate.ok()) return rate.status();
    copy->bytes_per_second = *rate;
  }
  return absl::OkStatus();
}

absl::StatusOr<ConvertPlan> make_plan(const ConvertArguments& arguments) {
  ConvertPlan plan;
  absl::Status status = read_copy_options(arguments, &plan.copy);
  if (!status.ok()) return status;
  const auto source_cache = parse_cache_mode(arguments.source_cache);
  if (!source_cache.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid source cache option: ", arguments.source_cache));
  }
  const auto target_cache = parse_cache_mode(arguments.target_cache);
  if (!target_cache.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid cache option: ", arguments.target_cache));
  }
  plan.source_cache = *source_cache;
  plan.target_cache = *target_cache;
  absl::StatusOr<CreateOptions> create = read_create_options(arguments);
  if (!create.ok()) return create.status();
  plan.create = *std::move(create);
  plan.copy.target_has_backing = !plan.create.backing_filename.empty();
  const auto encryption = crypto::find_create_format(plan.create.options);
  if (!encryption.ok()) return encryption.status();
  if (arguments.compress && !encryption->empty()) {
    return absl::UnimplementedError(
        "Compression and encryption not supported at the same time");
  }
  return plan;
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
  if (arguments.skip_broken_bitmaps && !arguments.bitmaps)
    return fail("Use of --skip-broken-bitmaps requires --bitmaps");
  absl::StatusOr<ConvertPlan> plan = make_plan(arguments);
  if (!plan.ok()) return fail(plan.status().message());

  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor({});
  if (!executor.ok()) return fail(executor.status().message());
  const auto secrets = load_secrets(arguments.objects);
  if (!secrets.ok()) return fail(secrets.status().message());
  plan->create.secrets = *secrets;
  const ImageOpener opener(builtin_drivers(), tool_policy(*secrets));
  OpenOptions source_options;
  source_options.read_only = true;
  source_options.snapshot = chosen_snapshot(arguments.snapshot);
  source_options.force_share = arguments.force_share;
  absl::StatusOr<std::unique_ptr<BlockDevice>> source = open_device(
      opener, arguments.source, arguments.source_format, arguments.image_opts,
      source_options, plan->source_cache, executor->get());
  if (!source.ok()) return fail(source.status().message());

  // A limit on the size of files is an error like any other: the process must
  // live to clean up.
  std::signal(SIGXFSZ, SIG_IGN);
  std::optional<NewFile> file;
  if (!arguments.skip_create) file.emplace(arguments.target);
  absl::Status status =
      convert(arguments, opener, *std::move(plan), **source, executor->get());
  const absl::Status closed = (*source)->close();
  if (status.ok()) status = closed;
  if (!status.ok()) return fail(status.message());
  if (file.has_value()) file->keep();
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
  add_object_option(convert, &arguments->objects);
  convert->add_flag("--image-opts", arguments->image_opts,
                    "the source is a list of options, not a file name");
  convert->add_option("-l", arguments->snapshot,
                      "copy this snapshot: snapshot.id=ID,snapshot.name=NAME, "
                      "or an id or a name");
  convert->add_option("-O", arguments->target_format,
                      "the new image's format (raw)");
  convert
      ->add_option("-o", arguments->options,
                   "options of the new image as name=value,...; \"help\" lists "
                   "them")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  convert->add_option("-B", arguments->backing_filename,
                      "the new image's backing file; has what the source's "
                      "backing file has");
  convert->add_option("-F", arguments->backing_format, "its format");
  convert->add_flag("-n", arguments->skip_create,
                    "the target is there already, and is kept");
  convert->add_flag("--target-is-zero", arguments->target_is_zero,
                    "with -n: it reads as zeroes");
  convert->add_option("-S", arguments->min_zeroes,
                      "shorter runs of zeroes are written (4k); 0: all are");
  convert->add_option("-t", arguments->target_cache,
                      "the target's cache mode (unsafe)");
  convert->add_option("-T", arguments->source_cache,
                      "the source's cache mode (writeback)");
  convert->add_option("-r", arguments->rate_limit, "bytes per second at most");
  convert->add_flag("-U,--force-share", arguments->force_share,
                    "read the source also while somebody else writes");
  convert->add_flag("-c", arguments->compress, "compress the data");
  convert->add_flag("-W", arguments->out_of_order,
                    "write in any order, which is faster");
  convert->add_option("-m", arguments->coroutines,
                      "pieces that are copied at one time (8)");
  convert->add_flag("--bitmaps", arguments->bitmaps,
                    "copy the source's persistent bitmaps, too");
  convert->add_flag("--skip-broken-bitmaps", arguments->skip_broken_bitmaps,
                    "leave out those that are inconsistent");
  convert->add_flag("-p", arguments->progress, "show how far it is");
  convert->add_flag("-q", arguments->quiet, "print nothing");
  return [arguments] { return run_convert(*arguments); };
}

}  // namespace spindle

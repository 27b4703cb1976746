// spindle-img convert: copy images into a new one.
#include <sys/stat.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_device.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/dirty_bitmap.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/jobs/copy.h"
#include "engine/jobs/copy_bitmaps.h"
#include "engine/jobs/sector_status.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/interruption.h"
#include "tools/new_file.h"
#include "tools/progress.h"
#include "tools/snapshot_choice.h"

namespace spindle {
namespace {

// As qemu-img allows.
constexpr long kMaxCoroutines = 16;
constexpr uint64_t kMaxSparseBytes = uint64_t{16} << 20;

struct ConvertArguments {
  std::vector<std::string> sources;
  std::string source_format;
  bool image_opts = false;
  std::optional<SnapshotChoice> snapshot;
  CacheMode source_cache = CacheMode::kWriteback;
  bool force_share = false;

  std::string target;
  std::optional<std::string> target_format;
  bool target_image_opts = false;
  std::string target_cache = "unsafe";
  OptionText options;
  std::optional<std::string> backing_filename;
  std::optional<std::string> backing_format;
  bool skip_create = false;
  bool target_is_zero = false;

  CopyOptions copy;
  bool sparse_given = false;
  bool offload = false;
  bool bitmaps = false;
  bool skip_broken_bitmaps = false;
  bool progress = false;
  bool quiet = false;

  // "raw" if nothing else is said.
  std::string format() const {
    return target_format.value_or(target_image_opts ? "" : "raw");
  }
  ImageArgument target_image() const {
    return {.name = target,
            .format = format(),
            .image_opts = skip_create && target_image_opts};
  }
};

using Device = std::unique_ptr<BlockDevice>;

// What has been said on standard error already.
absl::Status said() { return absl::UnknownError(""); }

absl::StatusOr<Device> make_device(std::shared_ptr<BlockDriver> driver,
                                   CacheMode cache, Executor* executor) {
  BlockDeviceOptions options;
  options.cache_mode = cache;
  return BlockDevice::create(std::move(driver), executor, options);
}

class Converter {
 public:
  Converter(const ConvertArguments& arguments, const ImageOpener& opener,
            Executor* executor, std::shared_ptr<const SecretStore> secrets)
      : arguments_(arguments),
        opener_(opener),
        executor_(executor),
        secrets_(std::move(secrets)),
        copy_(arguments.copy) {}

  absl::Status run();

 private:
  absl::Status open_sources();
  absl::Status plan_target();
  absl::Status read_backing();
  absl::Status find_source_bitmaps();
  absl::Status convert_into_target();
  absl::Status create_target();
  absl::Status open_target();
  absl::Status check_target();
  absl::Status copy();
  bool target_has_backing() const { return !create_.backing_filename.empty(); }

  const ConvertArguments& arguments_;
  const ImageOpener& opener_;
  Executor* const executor_;
  const std::shared_ptr<const SecretStore> secrets_;
  CopyOptions copy_;
  std::vector<Device> sources_;
  uint64_t length_ = 0;
  CreateOptions create_;
  std::vector<DirtyBitmapInfo> bitmaps_;
  std::string path_;  // of the new file
  std::optional<NewFile> file_;
  Device target_;
};

absl::Status Converter::open_sources() {
  for (const std::string& name : arguments_.sources) {
    OpenOptions options;
    options.read_only = true;
    options.force_share = arguments_.force_share;
    apply_cache_mode(arguments_.source_cache, &options);
    const ImageArgument image{.name = name,
                              .format = arguments_.source_format,
                              .image_opts = arguments_.image_opts};
    // Snapshots are looked for once it is known how many sources there are.
    std::shared_ptr<BlockDriver> driver =
        arguments_.sources.size() > 1
            ? open_or_complain(opener_, image, options)
            : open_snapshot_or_complain(opener_, image, options,
                                        arguments_.snapshot);
    if (driver == nullptr) return said();
    absl::StatusOr<Device> device =
        make_device(std::move(driver), arguments_.source_cache, executor_);
    if (!device.ok()) return device.status();
    sources_.push_back(*std::move(device));
    length_ += whole_sectors_bytes(*sources_.back());
  }
  if (arguments_.snapshot.has_value() && sources_.size() > 1) {
    return absl::InvalidArgumentError(
        "No support for concatenating multiple snapshot");
  }
  return absl::OkStatus();
}

absl::Status Converter::read_backing() {
  const auto take = [this](const std::string& name) {
    const auto node = create_.options.extract(name);
    return node.empty() ? std::string() : node.mapped();
  };
  const std::string name = take("backing_file");
  const std::string format = take("backing_fmt");
  create_.backing_filename = arguments_.backing_filename.value_or(name);
  create_.backing_format = arguments_.backing_format.value_or(format);
  // It is looked at when the target is opened.
  create_.unsafe_backing = true;
  if (sources_.size() > 1 && target_has_backing()) {
    return absl::InvalidArgumentError(
        "Having a backing file for the target makes no sense when "
        "concatenating multiple input images");
  }
  if (target_has_backing() && create_.backing_format.empty()) {
    return absl::InvalidArgumentError(
        "Use of backing file requires explicit backing format");
  }
  return absl::OkStatus();
}

absl::Status Converter::plan_target() {
  if (arguments_.skip_create) {
    create_.backing_filename = arguments_.backing_filename.value_or("");
    create_.backing_format = arguments_.backing_format.value_or("");
    return absl::OkStatus();
  }
  const std::string format_name = arguments_.format();
  const ImageFormat* const format = builtin_drivers().find_format(format_name);
  if (format == nullptr) {
    return absl::InvalidArgumentError(
        builtin_drivers().find_filter(format_name) != nullptr
            ? absl::StrCat("Format driver '", format_name,
                           "' does not support image creation")
            : absl::StrCat("Unknown file format '", format_name, "'"));
  }
  const absl::StatusOr<std::string> path =
      opener_.new_file_name(arguments_.target);
  if (!path.ok()) return path.status();
  path_ = *path;
  const std::vector<OptionHelp> known = all_create_options(*format);
  absl::StatusOr<OptionMap> options =
      typed_options(arguments_.options.text(), known);
  if (!options.ok()) return options.status();
  create_.options = *std::move(options);
  create_.options.erase("size");  // the sources'
  create_.size_bytes = length_;
  create_.secrets = secrets_;
  const auto refuse = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " not supported for file format '", format_name, "'"));
  };
  if (arguments_.backing_filename.has_value() && !format->supports_backing())
    return refuse("Backing file");
  if (arguments_.backing_format.has_value() && !format->supports_backing())
    return refuse("Backing file format");
  absl::Status status = read_backing();
  if (!status.ok() || !arguments_.copy.compress) return status;
  const auto preallocation = create_.options.find("preallocation");
  if (create_.options.count("encrypt.format") != 0 ||
      create_.options.count("encryption") != 0) {
    return absl::InvalidArgumentError(
        "Compression and encryption not supported at the same time");
  }
  if (preallocation != create_.options.end() &&
      preallocation->second != "off") {
    return absl::InvalidArgumentError(
        "Compression and preallocation not supported at the same time");
  }
  return absl::OkStatus();
}

absl::Status Converter::find_source_bitmaps() {
  if (!arguments_.bitmaps) return absl::OkStatus();
  if (sources_.size() > 1) {
    return absl::InvalidArgumentError(
        "Copying bitmaps only possible with single source");
  }
  const LogSink log = [](LogSeverity, absl::string_view message) {
    warn(message);
  };
  absl::StatusOr<std::vector<DirtyBitmapInfo>> found =
      find_bitmaps(sources_[0]->driver(), arguments_.skip_broken_bitmaps, log);
  if (found.ok()) {
    bitmaps_ = *std::move(found);
    return absl::OkStatus();
  }
  if (!absl::IsFailedPrecondition(found.status())) return found.status();
  return absl::FailedPreconditionError(absl::StrCat(
      found.status().message(), "\nTry --skip-broken-bitmaps, or use '",
      program_name(), " bitmap --remove' to delete it"));
}

absl::Status Converter::create_target() {
  file_.emplace(path_);
  const absl::Status status =
      opener_.create(arguments_.target, arguments_.format(), create_);
  if (status.ok()) {
    file_->note_overwritten();
    return status;
  }
  const std::string context = absl::StrCat(
      arguments_.target, ": error while converting ", arguments_.format());
  return with_contexts(status, context, context);
}

absl::Status Converter::open_target() {
  const std::optional<CacheMode> cache = cache_mode_of(arguments_.target_cache);
  if (!cache.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid cache option: ", arguments_.target_cache));
  }
  OpenOptions options = tool_open_options();
  add_key_secrets(create_.options, &options.driver_options);
  options.discard = arguments_.copy.min_zeroes_bytes != 0;
  apply_cache_mode(*cache, &options);
  const ImageArgument image = arguments_.target_image();
  std::shared_ptr<BlockDriver> driver =
      open_or_complain(opener_, image, options);
  if (driver == nullptr) return said();
  absl::StatusOr<Device> device =
      make_device(std::move(driver), *cache, executor_);
  if (!device.ok()) return device.status();
  target_ = *std::move(device);
  return absl::OkStatus();
}

absl::Status Converter::check_target() {
  const Capabilities can = target_->driver().capabilities();
  if (arguments_.bitmaps && !can.has(Capability::kBitmaps)) {
    return absl::UnimplementedError(
        absl::StrCat("Format driver '", target_->driver().format_name(),
                     "' does not support bitmaps"));
  }
  if (arguments_.copy.compress && !can.has(Capability::kWriteCompressed)) {
    return absl::UnimplementedError(
        "Compression not supported for this file format");
  }
  if (arguments_.skip_create && whole_sectors_bytes(*target_) < length_) {
    return absl::InvalidArgumentError("output file is smaller than input file");
  }
  return absl::OkStatus();
}

// A new file reads as zeroes; what else is there does not.
bool is_block_device(const std::string& filename) {
  struct stat facts = {};
  return ::stat(filename.c_str(), &facts) == 0 && S_ISBLK(facts.st_mode);
}

absl::Status Converter::copy() {
  Progress progress(arguments_.progress && !arguments_.quiet);
  copy_.target_has_backing = target_has_backing();
  const bool is_new = !arguments_.skip_create && !is_block_device(path_) &&
                      builtin_drivers()
                          .find_format(arguments_.format())
                          ->new_images_read_as_zeroes(create_);
  copy_.target_reads_as_zeroes =
      !copy_.target_has_backing &&
      ((is_new && copy_.min_zeroes_bytes != 0) || arguments_.target_is_zero);
  copy_.job.executor = executor_;
  copy_.job.cancelled = Interruption::flag();
  copy_.job.progress = [&progress](uint64_t done, uint64_t total) {
    progress.report(done, total);
  };
  if (!arguments_.quiet) {
    copy_.log = [](LogSeverity, absl::string_view message) { warn(message); };
  }
  std::vector<BlockDevice*> sources;
  for (const Device& device : sources_) sources.push_back(device.get());
  const absl::Status status = copy_images(sources, *target_, copy_);
  if (status.ok()) {
    progress.finish();
  } else {
    progress.end_line();
  }
  return status;
}

absl::Status Converter::convert_into_target() {
  absl::Status status = open_target();
  if (!status.ok()) return status;
  BlockDriver& target = target_->driver();
  status = check_target();
  if (status.ok()) status = add_bitmaps(bitmaps_, target);
  if (status.ok()) status = copy();
  if (status.ok())
    status = fill_bitmaps(bitmaps_, sources_[0]->driver(), target);
  const absl::Status closed = target_->close();
  return status.ok() ? closed : status;
}

absl::Status Converter::run() {
  absl::Status status = open_sources();
  if (status.ok()) status = plan_target();
  if (status.ok()) status = find_source_bitmaps();
  if (status.ok() && !arguments_.skip_create) status = create_target();
  if (status.ok()) status = convert_into_target();
  for (const Device& source : sources_)
    source->close().IgnoreError();  // it was only read
  if (status.ok() && file_.has_value()) file_->keep();
  return status;
}

int run(const ConvertArguments& arguments,
        const std::shared_ptr<const SecretStore>& secrets) {
  const absl::StatusOr<std::unique_ptr<Executor>> executor =
      create_executor({.width = pieces_at_once(arguments.copy)});
  if (!executor.ok()) return fail(executor.status().message());
  const ImageOpener opener(builtin_drivers(), tool_policy(secrets));
  const Interruption interruption;
  const absl::Status status =
      Converter(arguments, opener, executor->get(), secrets).run();
  if (status.ok()) return 0;
  if (absl::IsCancelled(status) || status.message().empty()) return 1;
  return fail(qemu_words(status));
}

// ---- The command line -------------------------------------------------------

uint64_t sparse_size_or_exit(const char* text) {
  const uint64_t bytes = size_or_exit("buffer size for sparse output", text);
  if (bytes % kSectorSizeBytes == 0 && bytes <= kMaxSparseBytes) return bytes;
  exit_with(absl::StrCat(
      "Invalid buffer size for sparse output specified. Valid sizes are "
      "multiples of ",
      kSectorSizeBytes, " up to ", kMaxSparseBytes,
      ". Select 0 to disable sparse detection (fully allocates output)."));
}

size_t coroutines_or_exit(const char* text) {
  char* end = nullptr;
  const long count = std::strtol(text, &end, 0);
  if (end != text && *end == '\0' && count >= 1 && count <= kMaxCoroutines)
    return static_cast<size_t>(count);
  exit_with(absl::StrCat(
      "Invalid number of coroutines. Allowed number of coroutines is between "
      "1 and ",
      kMaxCoroutines));
}

void check_arguments(const ConvertArguments& arguments) {
  if (arguments.skip_broken_bitmaps && !arguments.bitmaps)
    exit_with("Use of --skip-broken-bitmaps requires --bitmaps");
  if (arguments.target_image_opts && !arguments.skip_create)
    exit_with("--target-image-opts requires use of -n flag");
  if (arguments.skip_create && !arguments.options.empty())
    exit_with("-o has no effect when skipping image creation");
  if (arguments.target_is_zero && !arguments.skip_create)
    exit_with("--target-is-zero requires use of -n flag");
  if (arguments.offload && arguments.copy.compress)
    exit_with("Cannot enable copy offloading when -c is used");
  if (arguments.offload && arguments.sparse_given)
    exit_with("Cannot enable copy offloading when -S is used");
}

std::vector<option> long_options() {
  return {{"source-image-opts", no_argument, nullptr, kOptionImageOpts},
          {"image-opts", no_argument, nullptr, kOptionImageOpts},
          {"force-share", no_argument, nullptr, 'U'},
          {"target-image-opts", no_argument, nullptr, kOptionTargetImageOpts},
          {"salvage", no_argument, nullptr, kOptionSalvage},
          {"target-is-zero", no_argument, nullptr, kOptionTargetIsZero},
          {"bitmaps", no_argument, nullptr, kOptionBitmaps},
          {"skip-broken-bitmaps", no_argument, nullptr, kOptionSkipBroken}};
}

// What the letter or long option `found` says; false for -o that is wrong.
bool read_option(int found, const char* text, ConvertArguments* arguments,
                 std::string* source_cache) {
  switch (found) {
    case 'f':
      arguments->source_format = text;
      break;
    case 'O':
      arguments->target_format = text;
      break;
    case 'B':
      arguments->backing_filename = text;
      break;
    case 'F':
      arguments->backing_format = text;
      break;
    case 'C':
      arguments->offload = true;
      break;
    case 'c':
      arguments->copy.compress = true;
      break;
    case 'o':
      return arguments->options.add(text);
    case 'l':
      arguments->snapshot = parse_snapshot_choice(text);
      break;
    case 'S':
      arguments->copy.min_zeroes_bytes = sparse_size_or_exit(text);
      arguments->sparse_given = true;
      break;
    case 'p':
      arguments->progress = true;
      break;
    case 'q':
      arguments->quiet = true;
      break;
    case 't':
      arguments->target_cache = text;
      break;
    case 'T':
      *source_cache = text;
      break;
    case 'n':
      arguments->skip_create = true;
      break;
    case 'm':
      arguments->copy.max_pieces = coroutines_or_exit(text);
      break;
    case 'W':
      arguments->copy.in_order = false;
      break;
    case 'r':
      arguments->copy.bytes_per_second = size_or_exit("rate limit", text);
      break;
    case 'U':
      arguments->force_share = true;
      break;
    case kOptionTargetImageOpts:
      arguments->target_image_opts = true;
      break;
    case kOptionSalvage:
      arguments->copy.salvage = true;
      break;
    case kOptionTargetIsZero:
      arguments->target_is_zero = true;
      break;
    case kOptionBitmaps:
      arguments->bitmaps = true;
      break;
    case kOptionSkipBroken:
      arguments->skip_broken_bitmaps = true;
      break;
    default:
      break;
  }
  return true;
}

}  // namespace

int run_convert(int argc, char** argv) {
  ConvertArguments arguments;
  std::string source_cache = "writeback";
  OptionReader reader(argc, argv, "O:B:CcF:f:o:l:S:pqt:T:nm:Wr:U",
                      long_options());
  while (const std::optional<int> found = reader.next()) {
    if (!read_option(*found, reader.argument(), &arguments, &source_cache))
      return 1;
  }
  check_arguments(arguments);
  arguments.image_opts = reader.image_opts();
  arguments.sources = reader.operands();
  if (arguments.sources.size() > 1) {
    arguments.target = arguments.sources.back();
    arguments.sources.pop_back();
  } else {
    arguments.sources.clear();
  }
  if (arguments.options.asks_for_help())
    return print_create_help(arguments.format(), !arguments.target.empty());
  if (arguments.sources.empty()) return fail("Must specify image file name");
  const std::optional<CacheMode> source = cache_mode_of(source_cache);
  if (!source.has_value())
    return fail(absl::StrCat("Invalid source cache option: ", source_cache));
  arguments.source_cache = *source;
  return run(arguments, reader.secrets());
}

}  // namespace spindle

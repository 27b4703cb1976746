// spindle-img measure: how large the file of a new image becomes.
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/image_report.h"
#include "tools/img_options.h"
#include "tools/snapshot_choice.h"

namespace spindle {
namespace {

struct MeasureArguments {
  ImageArgument image;
  std::optional<std::string> snapshot;
  std::string format = "raw";
  OptionText options;
  std::optional<uint64_t> size_bytes;
  bool has_source = false;
  bool json = false;
  bool force_share = false;
};

void print(const ImageFormat::Measurement& measured, bool json) {
  if (json) {
    nlohmann::ordered_json object;
    object["required"] = measured.required_bytes;
    object["fully-allocated"] = measured.fully_allocated_bytes;
    if (measured.bitmaps_bytes.has_value())
      object["bitmaps"] = *measured.bitmaps_bytes;
    std::printf("%s\n", print_json(object).c_str());
    return;
  }
  const auto line = [](const char* what, uint64_t bytes) {
    std::printf("%s size: %llu\n", what,
                static_cast<unsigned long long>(bytes));
  };
  line("required", measured.required_bytes);
  line("fully allocated", measured.fully_allocated_bytes);
  if (measured.bitmaps_bytes.has_value())
    line("bitmaps", *measured.bitmaps_bytes);
}

// Moves what the options say about the backing file to where create() wants it.
CreateOptions create_options(OptionMap options, uint64_t size_bytes) {
  CreateOptions create;
  create.size_bytes = size_bytes;
  options.erase("size");
  if (const auto node = options.extract("backing_file"); !node.empty())
    create.backing_filename = node.mapped();
  if (const auto node = options.extract("backing_fmt"); !node.empty())
    create.backing_format = node.mapped();
  // Nothing is opened here: any format will do.
  if (create.backing_filename.empty()) {
    create.backing_format.clear();
  } else if (create.backing_format.empty()) {
    create.backing_format = "raw";
  }
  create.options = std::move(options);
  return create;
}

// `bitmaps`: what has the source's bitmaps, which a snapshot of it does not
// show; null: the source itself.
int measure(const MeasureArguments& arguments, BlockDriver* source,
            BlockDriver* bitmaps, std::shared_ptr<const SecretStore> secrets) {
  const ImageFormat* const format =
      builtin_drivers().find_format(arguments.format);
  if (format == nullptr)
    return fail(absl::StrCat("Unknown file format '", arguments.format, "'"));
  absl::StatusOr<OptionMap> options =
      typed_options(arguments.options.text(), all_create_options(*format));
  if (!options.ok()) {
    fail(options.status().message());
    return fail(absl::StrCat("Invalid options for file format '",
                             arguments.format, "'"));
  }
  const uint64_t size = source != nullptr
                            ? align_up(source->length_bytes(), kSectorSizeBytes)
                            : arguments.size_bytes.value_or(0);
  CreateOptions create = create_options(*std::move(options), size);
  create.secrets = std::move(secrets);
  absl::StatusOr<ImageFormat::Measurement> measured =
      format->measure(create, source);
  if (measured.ok() && bitmaps != nullptr) {
    const absl::StatusOr<ImageFormat::Measurement> of_image =
        format->measure(create, bitmaps);
    if (!of_image.ok()) return fail(qemu_words(of_image.status()));
    measured->bitmaps_bytes = of_image->bitmaps_bytes;
  }
  if (!measured.ok()) return fail(qemu_words(measured.status()));
  print(*measured, arguments.json);
  return 0;
}

int run(const MeasureArguments& arguments,
        const std::shared_ptr<const SecretStore>& secrets) {
  if (!arguments.has_source)
    return measure(arguments, nullptr, nullptr, secrets);
  OpenOptions options;
  options.read_only = true;
  options.force_share = arguments.force_share;
  std::optional<SnapshotChoice> snapshot;
  if (arguments.snapshot.has_value())
    snapshot = parse_snapshot_choice(*arguments.snapshot);
  const ImageOpener opener(builtin_drivers(), tool_policy(secrets));
  const std::shared_ptr<BlockDriver> source =
      open_snapshot_or_complain(opener, arguments.image, options, snapshot);
  if (source == nullptr) return 1;
  std::shared_ptr<BlockDriver> image;
  if (snapshot.has_value()) {
    options.open_backing = false;
    absl::StatusOr<std::shared_ptr<BlockDriver>> opened =
        open_image(opener, arguments.image, options);
    if (!opened.ok()) return fail(qemu_words(opened.status()));
    image = *std::move(opened);
  }
  return measure(arguments, source.get(), image.get(), secrets);
}

void check_arguments(const MeasureArguments& arguments, size_t operands) {
  if (operands > 1) exit_with("At most one filename argument is allowed.");
  const bool about_source = arguments.image.image_opts ||
                            !arguments.image.format.empty() ||
                            arguments.snapshot.has_value();
  if (operands == 0 && about_source)
    exit_with("--image-opts, -f, and -l require a filename argument.");
  if (operands == 0 && !arguments.size_bytes.has_value())
    exit_with("Either --size N or one filename must be specified.");
  if (operands == 1 && arguments.size_bytes.has_value())
    exit_with("--size N cannot be used together with a filename.");
}

}  // namespace

int run_measure(int argc, char** argv) {
  MeasureArguments arguments;
  std::optional<std::string> output;
  OptionReader reader(argc, argv, "f:l:o:O:U",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"output", required_argument, nullptr, kOptionOutput},
                       {"size", required_argument, nullptr, kOptionSize},
                       {"force-share", no_argument, nullptr, 'U'}},
                      MisuseAnswer::kHelp);
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'l':
        arguments.snapshot = reader.argument();
        break;
      case 'o':
        if (!arguments.options.add(reader.argument())) return 1;
        break;
      case 'O':
        arguments.format = reader.argument();
        break;
      case 'U':
        arguments.force_share = true;
        break;
      case kOptionOutput:
        output = reader.argument();
        break;
      case kOptionSize:
        arguments.size_bytes = size_or_exit("image size", reader.argument());
        break;
      default:
        break;
    }
  }
  arguments.json = is_json_output(output);
  arguments.image.image_opts = reader.image_opts();
  check_arguments(arguments, reader.operands().size());
  arguments.has_source = !reader.operands().empty();
  if (arguments.has_source) arguments.image.name = reader.operands()[0];
  return run(arguments, reader.secrets());
}

}  // namespace spindle

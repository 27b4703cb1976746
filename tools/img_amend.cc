// spindle-img amend: changes options of an image that exists.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/amend.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/progress.h"

namespace spindle {
namespace {

struct AmendArguments {
  ImageArgument image;
  CacheMode cache = CacheMode::kWriteback;
  OptionText options;
  bool progress = false;
  bool force = false;
};

int fail_without_support(absl::string_view format) {
  return fail(absl::StrCat("Format driver '", format,
                           "' does not support option amendment"));
}

int print_help(const std::string& name) {
  const ImageFormat* const format = builtin_drivers().find_format(name);
  if (format == nullptr)
    return fail(absl::StrCat("Unknown file format '", name, "'"));
  const std::vector<OptionHelp> options = format->amend_options();
  if (options.empty()) return fail_without_support(name);
  std::printf("Amend options for '%s':\n%s", name.c_str(),
              describe_options(options).c_str());
  return 0;
}

// As QEMU words it.
absl::StatusOr<OptionMap> read_changes(const OptionText& text,
                                       const ImageFormat& format) {
  absl::StatusOr<OptionMap> changes =
      typed_options(text.text(), format.amend_options());
  if (changes.ok()) return changes;
  const bool for_creation =
      typed_options(text.text(), format.create_options()).ok();
  return absl::InvalidArgumentError(absl::StrCat(
      qemu_words(changes.status()),
      for_creation ? "\nThis option is only supported for image creation"
                   : ""));
}

int amend(BlockDriver* image, const AmendArguments& arguments) {
  const std::string name(image->format_name());
  if (arguments.options.asks_for_help()) return print_help(name);
  const ImageFormat* const format = builtin_drivers().find_format(name);
  if (format == nullptr || !image->capabilities().has(Capability::kAmend))
    return fail_without_support(name);
  absl::StatusOr<OptionMap> changes = read_changes(arguments.options, *format);
  if (!changes.ok()) return fail(changes.status().message());
  Progress progress(arguments.progress);
  AmendOptions options;
  options.changes = *std::move(changes);
  options.force = arguments.force;
  options.progress = [&progress](uint64_t done, uint64_t total) {
    progress.report(done, total);
  };
  absl::Status status = image->amend(options);
  progress.finish();
  const absl::Status closed = image->close();
  if (status.ok()) status = closed;
  return status.ok() ? 0 : fail(qemu_words(status));
}

int run(const AmendArguments& arguments, const ImageOpener& opener) {
  OpenOptions options = tool_open_options();
  apply_cache_mode(arguments.cache, &options);
  const std::shared_ptr<BlockDriver> image =
      open_or_complain(opener, arguments.image, options);
  return image == nullptr ? 1 : amend(image.get(), arguments);
}

}  // namespace

int run_amend(int argc, char** argv) {
  AmendArguments arguments;
  std::string cache = "writeback";
  bool quiet = false;
  OptionReader reader(argc, argv, "o:f:t:pq",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force", no_argument, nullptr, kOptionForce}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'o':
        if (!arguments.options.add(reader.argument())) return 1;
        break;
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 't':
        cache = reader.argument();
        break;
      case 'p':
        arguments.progress = true;
        break;
      case 'q':
        quiet = true;
        break;
      case kOptionForce:
        arguments.force = true;
        break;
      default:
        break;
    }
  }
  if (arguments.options.empty()) exit_with_usage("Must specify options (-o)");
  arguments.progress = arguments.progress && !quiet;
  if (!arguments.image.format.empty() && arguments.options.asks_for_help())
    return print_help(arguments.image.format);
  if (reader.operands().size() != 1)
    return fail("Expecting one image file name");
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

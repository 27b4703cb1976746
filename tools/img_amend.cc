// spindle-img amend: changes options of an image that exists.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/amend.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/object_option.h"

namespace spindle {
namespace {

struct AmendArguments {
  std::string filename;
  std::string format;
  std::string cache = "writeback";
  std::vector<std::string> options;
  std::vector<std::string> objects;
  bool image_opts = false;
  bool quiet = false;
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

bool lists(const std::vector<OptionHelp>& options, const std::string& name) {
  for (const OptionHelp& option : options) {
    if (option.name == name) return true;
  }
  return false;
}

// As QEMU words it.
absl::Status check_names(const OptionMap& changes, const ImageFormat& format) {
  for (const auto& [name, value] : changes) {
    if (lists(format.amend_options(), name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("Invalid parameter '", name, "'",
                     lists(format.create_options(), name)
                         ? "\nThis option is only supported for image creation"
                         : ""));
  }
  return absl::OkStatus();
}

void show_progress(bool wanted, uint64_t done, uint64_t total) {
  if (!wanted) return;
  std::printf("    (%.2f/100%%)\r",
              static_cast<double>(done) * 100.0 / static_cast<double>(total));
  std::fflush(stdout);
}

int amend_image(BlockDriver* image, const AmendArguments& arguments,
                OptionMap changes) {
  const std::string name(image->format_name());
  const ImageFormat* const format = builtin_drivers().find_format(name);
  if (format == nullptr || !image->capabilities().has(Capability::kAmend))
    return fail_without_support(name);
  const bool shows = arguments.progress && !arguments.quiet;
  show_progress(shows, 0, 1);
  AmendOptions options;
  options.changes = std::move(changes);
  options.force = arguments.force;
  options.progress = [shows](uint64_t done, uint64_t total) {
    show_progress(shows, done, total);
  };
  absl::Status status = check_names(options.changes, *format);
  if (status.ok()) status = image->amend(options);
  show_progress(shows, 1, 1);
  if (shows) std::printf("\n");
  const absl::Status closed = image->close();
  if (status.ok()) status = closed;
  return status.ok() ? 0 : fail(status.message());
}

int run_amend(const AmendArguments& arguments) {
  OptionMap changes;
  bool help = false;
  for (const std::string& text : arguments.options) {
    if (text.empty()) return fail("Invalid option list: ");
    const OptionList list = parse_option_list(text);
    help = help || list.help;
    for (const auto& [name, value] : list.options) changes[name] = value;
  }
  if (arguments.options.empty()) {
    return fail(
        "Must specify options (-o)\n"
        "Try 'spindle-img --help' for more information");
  }
  if (help && !arguments.format.empty()) return print_help(arguments.format);
  if (arguments.filename.empty()) return fail("Expecting one image file name");
  if (!parse_cache_mode(arguments.cache).ok())
    return fail(absl::StrCat("Invalid cache option: ", arguments.cache));

  const auto secrets = load_secrets(arguments.objects);
  if (!secrets.ok()) return fail(secrets.status().message());
  const ImageOpener opener(builtin_drivers(), tool_policy(*secrets));
  absl::StatusOr<std::shared_ptr<BlockDriver>> image =
      open_image(opener,
                 {.name = arguments.filename,
                  .format = arguments.format,
                  .image_opts = arguments.image_opts},
                 tool_open_options());
  if (!image.ok()) return fail_to_open(arguments.filename, image.status());
  if (help) return print_help(std::string((*image)->format_name()));
  return amend_image(image->get(), arguments, std::move(changes));
}

}  // namespace

Command add_amend_command(CLI::App* app) {
  auto arguments = std::make_shared<AmendArguments>();
  CLI::App* amend =
      app->add_subcommand("amend", "Change options of an existing image");
  amend->add_option("filename", arguments->filename, "the image");
  amend->add_option("-f", arguments->format,
                    "its format; guessed if not stated");
  amend
      ->add_option("-o", arguments->options,
                   "what shall change, as name=value,...; \"help\" lists it")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  add_object_option(amend, &arguments->objects);
  amend->add_flag("--image-opts", arguments->image_opts,
                  "the image is a list of options, not a file name");
  amend->add_option("-t", arguments->cache, "cache mode (writeback)");
  amend->add_flag("-q", arguments->quiet, "print nothing");
  amend->add_flag("-p", arguments->progress, "show how far it is");
  amend->add_flag("--force", arguments->force, "also what loses data for good");
  return [arguments] { return run_amend(*arguments); };
}

}  // namespace spindle

// spindle-img resize: make an image longer or shorter.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/image_opener.h"
#include "engine/option_values.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"

namespace spindle {
namespace {

struct ResizeArguments {
  std::string filename;
  std::string format;
  std::string size;
  std::string preallocation = "off";
  bool shrink = false;
  bool quiet = false;
};

// "+1G", "-1G" or "1G".
struct WantedSize {
  char sign = '\0';
  uint64_t bytes = 0;
};

absl::StatusOr<WantedSize> parse_wanted_size(absl::string_view text) {
  WantedSize wanted;
  if (!text.empty() && (text[0] == '+' || text[0] == '-')) {
    wanted.sign = text[0];
    text.remove_prefix(1);
  }
  const absl::StatusOr<uint64_t> bytes = parse_size_parameter("size", text);
  if (!bytes.ok()) return bytes.status();
  wanted.bytes = *bytes;
  return wanted;
}

// What that makes of an image of `length_bytes`; nothing if it is not positive.
std::optional<uint64_t> new_length(WantedSize wanted, uint64_t length_bytes) {
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  if (wanted.sign == '-') {
    if (wanted.bytes >= length_bytes) return std::nullopt;
    return length_bytes - wanted.bytes;
  }
  const uint64_t base = wanted.sign == '+' ? length_bytes : 0;
  if (wanted.bytes > kMost - base || wanted.bytes + base == 0)
    return std::nullopt;
  return base + wanted.bytes;
}

int resize(const ResizeArguments& arguments, WantedSize wanted,
           Preallocation preallocation, BlockDriver* image) {
  const uint64_t before = image->length_bytes();
  const std::optional<uint64_t> length = new_length(wanted, before);
  if (!length.has_value()) return fail("New image size must be positive");
  if (*length <= before && preallocation != Preallocation::kOff)
    return fail("Preallocation can only be used for growing images");
  if (*length < before && !arguments.shrink) {
    fail("Use the --shrink option to perform a shrink operation.");
    return fail(
        "warning: Shrinking an image will delete all data beyond the shrunken "
        "image's end. Before performing such an operation, make sure there is "
        "no important data there.");
  }
  if (!image->capabilities().has(Capability::kSetLength))
    return fail("Image format driver does not support resize");
  absl::Status status = image->resize(*length, preallocation);
  const absl::Status closed = image->close();
  if (status.ok()) status = closed;
  if (!status.ok()) return fail(status.message());
  if (!arguments.quiet) std::printf("Image resized.\n");
  return 0;
}

int run_resize(const ResizeArguments& arguments) {
  if (arguments.size.empty()) {
    return fail(absl::StrCat(arguments.filename.empty()
                                 ? "Not enough arguments"
                                 : "Expecting image file name and size",
                             "\nTry 'spindle-img --help' for more "
                             "information"));
  }
  const std::optional<Preallocation> preallocation =
      parse_preallocation(arguments.preallocation);
  if (!preallocation.has_value()) {
    return fail(absl::StrCat("Invalid preallocation mode '",
                             arguments.preallocation, "'"));
  }
  const absl::StatusOr<WantedSize> wanted = parse_wanted_size(arguments.size);
  if (!wanted.ok()) return fail(wanted.status().message());
  ImageOpener::Policy policy;
  policy.probe_image = arguments.format.empty();
  const ImageOpener opener(builtin_drivers(), std::move(policy));
  absl::StatusOr<std::shared_ptr<BlockDriver>> image =
      opener.open(arguments.filename, arguments.format, {});
  if (!image.ok()) return fail_to_open(arguments.filename, image.status());
  return resize(arguments, *wanted, *preallocation, image->get());
}

}  // namespace

Command add_resize_command(CLI::App* app) {
  auto arguments = std::make_shared<ResizeArguments>();
  CLI::App* resize =
      app->add_subcommand("resize", "Make an image longer or shorter");
  resize->add_option("filename", arguments->filename, "the image");
  resize->add_option("size", arguments->size,
                     "its new length; what is to be added after a +, taken "
                     "away after a -");
  resize->add_option("-f", arguments->format,
                     "its format; guessed if not stated");
  resize->add_option("--preallocation", arguments->preallocation,
                     "of what is added: off, metadata, falloc or full");
  resize->add_flag("--shrink", arguments->shrink,
                   "allow it to become shorter, which deletes data");
  resize->add_flag("-q", arguments->quiet, "say nothing but errors");
  return [arguments] { return run_resize(*arguments); };
}

}  // namespace spindle

// spindle-img resize: make an image longer or shorter.
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
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"

namespace spindle {
namespace {

// As long as QEMU lets an image be: 2^63 without its largest alignment.
constexpr uint64_t kMaxLength = (uint64_t{1} << 63) - (uint64_t{1} << 30);

struct ResizeArguments {
  ImageArgument image;
  Preallocation preallocation = Preallocation::kOff;
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
           BlockDriver* image) {
  const Preallocation preallocation = arguments.preallocation;
  // In whole sectors, as QEMU counts.
  const uint64_t before = align_up(image->length_bytes(), kSectorSizeBytes);
  const std::optional<uint64_t> length = new_length(wanted, before);
  if (!length.has_value()) return fail("New image size must be positive");
  if (*length > kMaxLength) {
    return fail(absl::StrCat("offset(", *length, ") exceeds maximum(",
                             kMaxLength, ")"));
  }
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
  if (!status.ok()) return fail(qemu_words(status));
  if (!arguments.quiet) std::printf("Image resized.\n");
  return 0;
}

Preallocation preallocation_of(const char* text) {
  const std::optional<Preallocation> mode = parse_preallocation(text);
  if (!mode.has_value())
    exit_with(absl::StrCat("Invalid preallocation mode '", text, "'"));
  return *mode;
}

}  // namespace

int run_resize(int argc, char** argv) {
  // The size comes first: it may look like an option ("-1G").
  if (argc < 3) exit_with_usage("Not enough arguments");
  const char* const size = argv[--argc];
  ResizeArguments arguments;
  OptionReader reader(
      argc, argv, "f:q",
      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
       {"preallocation", required_argument, nullptr, kOptionPreallocation},
       {"shrink", no_argument, nullptr, kOptionShrink}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'q':
        arguments.quiet = true;
        break;
      case kOptionPreallocation:
        arguments.preallocation = preallocation_of(reader.argument());
        break;
      case kOptionShrink:
        arguments.shrink = true;
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting image file name and size");
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  const absl::StatusOr<WantedSize> wanted = parse_wanted_size(size);
  if (!wanted.ok()) return fail(wanted.status().message());
  const ImageOpener opener(builtin_drivers(), tool_policy(reader.secrets()));
  const std::shared_ptr<BlockDriver> image =
      open_or_complain(opener, arguments.image, tool_open_options());
  return image == nullptr ? 1 : resize(arguments, *wanted, image.get());
}

}  // namespace spindle

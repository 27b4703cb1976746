// spindle-img bitmap: make, change and remove persistent dirty bitmaps.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/image_opener.h"
#include "engine/option_values.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"

namespace spindle {
namespace {

struct BitmapAction {
  enum class Kind { kAdd, kRemove, kClear, kEnable, kDisable, kMerge };
  Kind kind;
  std::string source;  // kMerge

  const char* name() const {
    static constexpr const char* kNames[] = {"add",    "remove",  "clear",
                                             "enable", "disable", "merge"};
    return kNames[static_cast<int>(kind)];
  }
};

struct BitmapArguments {
  std::vector<std::string> names;  // file and bitmap
  std::string format;
  std::string granularity;
  std::string source_filename;
  std::string source_format;
  std::vector<std::string> merged;
  std::vector<BitmapAction> actions;  // in the order of the command line

  bool does(BitmapAction::Kind kind) const {
    for (const BitmapAction& action : actions) {
      if (action.kind == kind) return true;
    }
    return false;
  }
};

using Image = std::shared_ptr<BlockDriver>;

absl::StatusOr<Image> open_image(const std::string& filename,
                                 const std::string& format, bool read_only) {
  ImageOpener::Policy policy;
  policy.probe_image = format.empty();
  const ImageOpener opener(builtin_drivers(), std::move(policy));
  OpenOptions options;
  options.read_only = read_only;
  // Only the image itself.
  options.open_backing = false;
  return opener.open(filename, format, options);
}

absl::Status merge(BlockDriver& image, const std::string& name,
                   BlockDriver& source, const std::string& source_name) {
  const absl::StatusOr<std::shared_ptr<const DirtyBitmap>> bits =
      source.find_bitmap(source_name);
  if (!bits.ok()) return bits.status();
  return image.merge_bitmap(name, **bits);
}

absl::Status run_action(const BitmapAction& action, const std::string& name,
                        uint64_t granularity, BlockDriver& image,
                        BlockDriver& source) {
  if (!image.capabilities().has(Capability::kBitmaps)) {
    return action.kind == BitmapAction::Kind::kAdd
               ? absl::UnimplementedError(absl::StrCat(
                     "Can't store persistent bitmaps to '", image.filename(),
                     "': Operation not supported"))
               : absl::NotFoundError(
                     absl::StrCat("Dirty bitmap '", name, "' not found"));
  }
  switch (action.kind) {
    case BitmapAction::Kind::kAdd:
      return image.add_bitmap({name, granularity, /*enabled=*/true});
    case BitmapAction::Kind::kRemove:
      return image.remove_bitmap(name);
    case BitmapAction::Kind::kClear:
      return image.clear_bitmap(name);
    case BitmapAction::Kind::kEnable:
      return image.enable_bitmap(name, true);
    case BitmapAction::Kind::kDisable:
      return image.enable_bitmap(name, false);
    case BitmapAction::Kind::kMerge:
      return merge(image, name, source, action.source);
  }
  return absl::InternalError("no such action");
}

// What is done before one fails stays done.
int run_actions(const BitmapArguments& arguments, uint64_t granularity,
                BlockDriver& image, BlockDriver& source) {
  const std::string& name = arguments.names[1];
  int code = 0;
  for (const BitmapAction& action : arguments.actions) {
    const absl::Status status =
        run_action(action, name, granularity, image, source);
    if (status.ok()) continue;
    code =
        fail(absl::StrCat("Operation ", action.name(), " on bitmap ", name,
                          " failed: ", status.message(),
                          absl::StrContains(status.message(), "is inconsistent")
                              ? "\nTry block-dirty-bitmap-remove to delete "
                                "this bitmap from disk"
                              : ""));
    break;
  }
  const absl::Status closed = image.close();
  return closed.ok() || code != 0 ? code : fail(closed.message());
}

int run_bitmap(const BitmapArguments& arguments) {
  uint64_t granularity = 0;
  if (!arguments.granularity.empty()) {
    const auto parsed = parse_size(arguments.granularity);
    if (!parsed.has_value()) {
      return fail(
          "Invalid granularity specified. You may use k, M, G, T, P or E "
          "suffixes for\nspindle-img: kilobytes, megabytes, gigabytes, "
          "terabytes, petabytes and exabytes.");
    }
    granularity = *parsed;
  }
  if (arguments.actions.empty()) {
    return fail(
        "Need at least one of --add, --remove, --clear, --enable, --disable, "
        "or --merge");
  }
  if (arguments.names.size() != 2)
    return fail("Expecting filename and bitmap name");
  if (granularity != 0 && !arguments.does(BitmapAction::Kind::kAdd))
    return fail("granularity only supported with --add");
  if (!arguments.source_format.empty() && arguments.source_filename.empty())
    return fail("-F only supported with -b");
  if (!arguments.source_filename.empty() &&
      !arguments.does(BitmapAction::Kind::kMerge)) {
    return fail("Merge bitmap source file only supported with --merge");
  }
  const std::string& filename = arguments.names[0];
  const absl::StatusOr<Image> image =
      open_image(filename, arguments.format, /*read_only=*/false);
  if (!image.ok()) return fail_to_open(filename, image.status());
  if (arguments.source_filename.empty())
    return run_actions(arguments, granularity, **image, **image);
  const absl::StatusOr<Image> source =
      open_image(arguments.source_filename, arguments.source_format,
                 /*read_only=*/true);
  if (!source.ok()) {
    (*image)->close().IgnoreError();
    return fail_to_open(arguments.source_filename, source.status());
  }
  const int code = run_actions(arguments, granularity, **image, **source);
  (*source)->close().IgnoreError();  // it was only read
  return code;
}

struct ActionOption {
  const char* name;
  BitmapAction::Kind kind;
  const char* help;
};
constexpr ActionOption kActionOptions[] = {
    {"--add", BitmapAction::Kind::kAdd, "make it, enabled"},
    {"--remove", BitmapAction::Kind::kRemove, "remove it"},
    {"--clear", BitmapAction::Kind::kClear, "make all of it clean"},
    {"--enable", BitmapAction::Kind::kEnable, "let it follow writes"},
    {"--disable", BitmapAction::Kind::kDisable, "let it follow no more writes"},
    {"--merge", BitmapAction::Kind::kMerge,
     "add what is dirty in another bitmap"}};

// The parser knows in which order they came.
std::vector<BitmapAction> actions_in_order(const CLI::App& command,
                                           const BitmapArguments& arguments) {
  std::vector<BitmapAction> actions;
  size_t merges = 0;
  for (const CLI::Option* option : command.parse_order()) {
    for (const ActionOption& action : kActionOptions) {
      if (!option->check_name(action.name)) continue;
      actions.push_back({action.kind, ""});
      if (action.kind == BitmapAction::Kind::kMerge)
        actions.back().source = arguments.merged[merges++];
    }
  }
  return actions;
}

}  // namespace

Command add_bitmap_command(CLI::App* app) {
  auto arguments = std::make_shared<BitmapArguments>();
  CLI::App* bitmap = app->add_subcommand(
      "bitmap", "Make, change and remove persistent dirty bitmaps");
  bitmap->add_option("names", arguments->names, "the image and the bitmap");
  bitmap->add_option("-f", arguments->format,
                     "the image's format; guessed if not stated");
  for (const ActionOption& action : kActionOptions) {
    if (action.kind != BitmapAction::Kind::kMerge) {
      bitmap->add_flag(action.name)->description(action.help);
      continue;
    }
    bitmap->add_option(action.name, arguments->merged, action.help)
        ->expected(1)
        ->take_all()
        ->allow_extra_args(false);
  }
  bitmap->add_option("-b", arguments->source_filename,
                     "the image that has the bitmap to merge");
  bitmap->add_option("-F", arguments->source_format, "that image's format");
  bitmap->add_option("-g", arguments->granularity,
                     "bytes for each bit of a new bitmap");
  return [=] {
    arguments->actions = actions_in_order(*bitmap, *arguments);
    return run_bitmap(*arguments);
  };
}

}  // namespace spindle

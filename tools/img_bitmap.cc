// spindle-img bitmap: make, change and remove persistent dirty bitmaps.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"

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
  ImageArgument image;
  std::string bitmap;
  ImageArgument source;  // an empty name: the image itself
  uint64_t granularity = 0;
  std::vector<BitmapAction> actions;  // in the order of the command line

  bool does(BitmapAction::Kind kind) const {
    for (const BitmapAction& action : actions) {
      if (action.kind == kind) return true;
    }
    return false;
  }
};

absl::Status merge(BlockDriver& image, const std::string& name,
                   BlockDriver& source, const std::string& source_name) {
  if (!source.capabilities().has(Capability::kBitmaps)) {
    return absl::NotFoundError(
        absl::StrCat("Dirty bitmap '", source_name, "' not found"));
  }
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
                     "Can't store persistent bitmaps to ", image.filename(),
                     ": Operation not supported"))
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
int run_actions(const BitmapArguments& arguments, BlockDriver& image,
                BlockDriver& source) {
  int code = 0;
  for (const BitmapAction& action : arguments.actions) {
    const absl::Status status = run_action(
        action, arguments.bitmap, arguments.granularity, image, source);
    if (status.ok()) continue;
    code =
        fail(absl::StrCat("Operation ", action.name(), " on bitmap ",
                          arguments.bitmap, " failed: ", qemu_words(status),
                          absl::StrContains(status.message(), "is inconsistent")
                              ? "\nTry block-dirty-bitmap-remove to delete "
                                "this bitmap from disk"
                              : ""));
    break;
  }
  const absl::Status closed = image.close();
  return closed.ok() || code != 0 ? code : fail(qemu_words(closed));
}

int run(const BitmapArguments& arguments, const ImageOpener& opener) {
  OpenOptions options = tool_open_options();
  // Only the image itself.
  options.open_backing = false;
  const std::shared_ptr<BlockDriver> image =
      open_or_complain(opener, arguments.image, options);
  if (image == nullptr) return 1;
  if (arguments.source.name.empty())
    return run_actions(arguments, *image, *image);
  options.read_only = true;
  const std::shared_ptr<BlockDriver> source =
      open_or_complain(opener, arguments.source, options);
  if (source == nullptr) {
    image->close().IgnoreError();  // nothing was changed
    return 1;
  }
  const int code = run_actions(arguments, *image, *source);
  source->close().IgnoreError();  // it was only read
  return code;
}

void check_arguments(const BitmapArguments& arguments, size_t operands) {
  if (arguments.actions.empty()) {
    exit_with(
        "Need at least one of --add, --remove, --clear, --enable, --disable, "
        "or --merge");
  }
  if (operands != 2) exit_with("Expecting filename and bitmap name");
  if (arguments.granularity != 0 && !arguments.does(BitmapAction::Kind::kAdd))
    exit_with("granularity only supported with --add");
  if (!arguments.source.format.empty() && arguments.source.name.empty())
    exit_with("-F only supported with -b");
  if (!arguments.source.name.empty() &&
      !arguments.does(BitmapAction::Kind::kMerge)) {
    exit_with("Merge bitmap source file only supported with --merge");
  }
}

}  // namespace

int run_bitmap(int argc, char** argv) {
  BitmapArguments arguments;
  OptionReader reader(argc, argv, "b:f:F:g:",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"add", no_argument, nullptr, kOptionAdd},
                       {"granularity", required_argument, nullptr, 'g'},
                       {"remove", no_argument, nullptr, kOptionRemove},
                       {"clear", no_argument, nullptr, kOptionClear},
                       {"enable", no_argument, nullptr, kOptionEnable},
                       {"disable", no_argument, nullptr, kOptionDisable},
                       {"merge", required_argument, nullptr, kOptionMerge},
                       {"source-file", required_argument, nullptr, 'b'},
                       {"source-format", required_argument, nullptr, 'F'}});
  const auto act = [&](BitmapAction::Kind kind, const char* source = "") {
    arguments.actions.push_back({kind, source});
  };
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'b':
        arguments.source.name = reader.argument();
        break;
      case 'f':
        arguments.image.format = reader.argument();
        break;
      case 'F':
        arguments.source.format = reader.argument();
        break;
      case 'g':
        arguments.granularity = size_or_exit("granularity", reader.argument());
        break;
      case kOptionAdd:
        act(BitmapAction::Kind::kAdd);
        break;
      case kOptionRemove:
        act(BitmapAction::Kind::kRemove);
        break;
      case kOptionClear:
        act(BitmapAction::Kind::kClear);
        break;
      case kOptionEnable:
        act(BitmapAction::Kind::kEnable);
        break;
      case kOptionDisable:
        act(BitmapAction::Kind::kDisable);
        break;
      case kOptionMerge:
        act(BitmapAction::Kind::kMerge, reader.argument());
        break;
      default:
        break;
    }
  }
  check_arguments(arguments, reader.operands().size());
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  arguments.bitmap = reader.operands()[1];
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

// spindle-img snapshot: list, make, return to and delete internal snapshots.
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/errors.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/image_opts.h"
#include "tools/img_options.h"
#include "tools/snapshot_text.h"

namespace spindle {
namespace {

enum class SnapshotAction { kNone, kList, kCreate, kApply, kDelete };

struct SnapshotArguments {
  ImageArgument image;
  bool force_share = false;
  SnapshotAction action = SnapshotAction::kNone;
  std::string snapshot;

  bool changes() const {
    return action != SnapshotAction::kNone && action != SnapshotAction::kList;
  }
};

absl::Status create_snapshot(BlockDriver* image, const std::string& name) {
  const absl::Time now = absl::Now();
  SnapshotInfo wanted;
  wanted.name = name;
  wanted.date_seconds = static_cast<uint32_t>(absl::ToUnixSeconds(now));
  wanted.date_nanoseconds = static_cast<uint32_t>(absl::ToInt64Nanoseconds(
      now - absl::FromUnixSeconds(absl::ToUnixSeconds(now))));
  // What qemu-img states of a guest that does not run.
  wanted.instruction_count = 0;
  return image->create_snapshot(wanted).status();
}

int list_snapshots(BlockDriver* image) {
  const auto snapshots = image->list_snapshots();
  // A format without snapshots has none.
  if (absl::IsUnimplemented(snapshots.status())) return 0;
  if (!snapshots.ok()) return fail(snapshots.status().message());
  std::printf("%s", snapshot_table_text(*snapshots).c_str());
  return 0;
}

// "-95 (Operation not supported)"
std::string number_and_text(const absl::Status& status) {
  const int error = errno_for(status);
  return absl::StrCat(-error, " (", std::strerror(error), ")");
}

// What to say of `status`, which is not OK.
std::string describe_failure(const SnapshotArguments& arguments,
                             const absl::Status& status) {
  const std::string& name = arguments.snapshot;
  switch (arguments.action) {
    case SnapshotAction::kCreate:
      return absl::StrCat("Could not create snapshot '", name,
                          "': ", number_and_text(status));
    case SnapshotAction::kApply:
      return absl::StrCat("Could not apply snapshot '", name, "': ",
                          absl::IsUnimplemented(status)
                              ? "Block driver does not support snapshots"
                          : absl::IsNotFound(status)
                              ? absl::StrCat("Failed to load snapshot: ",
                                             std::strerror(errno_for(status)))
                              : qemu_words(status));
    default:
      return absl::StrCat(
          "Could not delete snapshot '", name, "': ",
          absl::IsNotFound(status) || absl::IsUnimplemented(status)
              ? "snapshot not found"
              : qemu_words(status));
  }
}

absl::Status change(BlockDriver* image, const SnapshotArguments& arguments) {
  if (arguments.action == SnapshotAction::kCreate)
    return create_snapshot(image, arguments.snapshot);
  if (arguments.action == SnapshotAction::kApply)
    return image->apply_snapshot(arguments.snapshot);
  return image->delete_snapshot(arguments.snapshot);
}

int run(const SnapshotArguments& arguments, const ImageOpener& opener) {
  OpenOptions options = tool_open_options();
  options.read_only = !arguments.changes();
  options.force_share = arguments.force_share;
  const std::shared_ptr<BlockDriver> image =
      open_or_complain(opener, arguments.image, options);
  if (image == nullptr) return 1;
  if (arguments.action == SnapshotAction::kNone) return 0;
  if (arguments.action == SnapshotAction::kList)
    return list_snapshots(image.get());
  absl::Status status = change(image.get(), arguments);
  const absl::Status closed = image->close();
  if (status.ok()) status = closed;
  return status.ok() ? 0 : fail(describe_failure(arguments, status));
}

}  // namespace

int run_snapshot(int argc, char** argv) {
  SnapshotArguments arguments;
  const auto set_action = [&](SnapshotAction action, const char* snapshot) {
    if (arguments.action != SnapshotAction::kNone)
      exit_with_usage("Cannot mix '-l', '-a', '-c', '-d'");
    arguments.action = action;
    if (snapshot != nullptr) arguments.snapshot = snapshot;
  };
  OptionReader reader(argc, argv, "la:c:d:qU",
                      {{"image-opts", no_argument, nullptr, kOptionImageOpts},
                       {"force-share", no_argument, nullptr, 'U'}});
  while (const std::optional<int> found = reader.next()) {
    switch (*found) {
      case 'l':
        set_action(SnapshotAction::kList, nullptr);
        break;
      case 'a':
        set_action(SnapshotAction::kApply, reader.argument());
        break;
      case 'c':
        set_action(SnapshotAction::kCreate, reader.argument());
        break;
      case 'd':
        set_action(SnapshotAction::kDelete, reader.argument());
        break;
      case 'U':
        arguments.force_share = true;
        break;
      default:
        break;
    }
  }
  if (reader.operands().size() != 1)
    exit_with_usage("Expecting one image file name");
  arguments.image.name = reader.operands()[0];
  arguments.image.image_opts = reader.image_opts();
  return run(arguments,
             ImageOpener(builtin_drivers(), tool_policy(reader.secrets())));
}

}  // namespace spindle

// spindle-img snapshot: list, make, return to and delete internal snapshots.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/commands.h"
#include "tools/snapshot_text.h"

namespace spindle {
namespace {

struct SnapshotArguments {
  std::string filename;
  std::string format;
  bool list = false;
  bool force_share = false;
  bool quiet = false;
  std::string create;
  std::string apply;
  std::string remove;
  // In the order of the command line, for "-c ''".
  int actions = 0;
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

int change_snapshots(BlockDriver* image, const SnapshotArguments& arguments) {
  absl::Status status;
  std::string failure;
  if (!arguments.create.empty()) {
    status = create_snapshot(image, arguments.create);
    failure =
        absl::StrCat("Could not create snapshot '", arguments.create, "'");
  } else if (!arguments.apply.empty()) {
    status = image->apply_snapshot(arguments.apply);
    failure = absl::StrCat("Could not apply snapshot '", arguments.apply, "'");
  } else {
    status = image->delete_snapshot(arguments.remove);
    failure =
        absl::StrCat("Could not delete snapshot '", arguments.remove, "'");
  }
  const absl::Status closed = image->close();
  if (status.ok()) status = closed;
  return status.ok() ? 0 : fail(absl::StrCat(failure, ": ", status.message()));
}

int run_snapshot(const SnapshotArguments& arguments) {
  if (arguments.actions > 1) {
    return fail(
        "Cannot mix '-l', '-a', '-c', '-d'\n"
        "Try 'spindle-img --help' for more information");
  }
  const bool changes = arguments.actions == 1 && !arguments.list;
  ImageOpener::Policy policy;
  policy.probe_image = arguments.format.empty();
  const ImageOpener opener(builtin_drivers(), std::move(policy));
  OpenOptions options;
  options.read_only = !changes;
  options.force_share = arguments.force_share;
  // Only the image itself.
  options.open_backing = false;
  absl::StatusOr<std::shared_ptr<BlockDriver>> image =
      opener.open(arguments.filename, arguments.format, options);
  if (!image.ok()) return fail_to_open(arguments.filename, image.status());
  if (changes) return change_snapshots(image->get(), arguments);
  return arguments.list ? list_snapshots(image->get()) : 0;
}

}  // namespace

Command add_snapshot_command(CLI::App* app) {
  auto arguments = std::make_shared<SnapshotArguments>();
  CLI::App* snapshot = app->add_subcommand(
      "snapshot", "List, make, return to and delete internal snapshots");
  snapshot->add_option("filename", arguments->filename, "the image")
      ->required();
  snapshot->add_option("-f", arguments->format,
                       "its format; guessed if not stated");
  CLI::Option* const list =
      snapshot->add_flag("-l", arguments->list, "list them");
  CLI::Option* const create =
      snapshot->add_option("-c", arguments->create, "make one of that name");
  CLI::Option* const apply = snapshot->add_option(
      "-a", arguments->apply, "make the disk what it was (id or name)");
  CLI::Option* const remove =
      snapshot->add_option("-d", arguments->remove, "delete it (id or name)");
  snapshot->add_flag("-q", arguments->quiet, "say nothing but errors");
  snapshot->add_flag("-U,--force-share", arguments->force_share,
                     "read it also while somebody else writes");
  return [=] {
    arguments->actions = static_cast<int>(list->count() + create->count() +
                                          apply->count() + remove->count());
    return run_snapshot(*arguments);
  };
}

}  // namespace spindle

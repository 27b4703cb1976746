#include "formats/cluster/image_files.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {
namespace {

using Step = absl::FunctionRef<absl::Status(BlockDriver& driver)>;

// Does `step` to all; where one fails, does `undo` to those before it.
absl::Status all_or_none(const std::vector<BlockDriver*>& drivers, Step step,
                         Step undo) {
  for (size_t i = 0; i < drivers.size(); ++i) {
    absl::Status status = step(*drivers[i]);
    if (status.ok()) continue;
    while (i-- > 0) undo(*drivers[i]).IgnoreError();  // the first error counts
    return status;
  }
  return absl::OkStatus();
}

// Those with locks to give up, the image's own file last.
std::vector<BlockDriver*> with_locks(const ImageFiles& files) {
  std::vector<BlockDriver*> drivers;
  for (BlockDriver* driver :
       {files.backing.get(), files.data_file.get(), files.file.get()}) {
    if (driver != nullptr &&
        driver->capabilities().has(Capability::kInactivate)) {
      drivers.push_back(driver);
    }
  }
  return drivers;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_named(
    ChildRequest request, absl::string_view what, const BlockDriver& file,
    const OpenContext& context) {
  if (!context.open_child) {
    return absl::PermissionDeniedError(
        absl::StrCat("the image names the ", what, " '", request.filename,
                     "', and nothing allows to open it"));
  }
  request.parent_filename = file.filename();
  request.depth = context.depth + 1;
  absl::StatusOr<std::shared_ptr<BlockDriver>> child =
      context.open_child(request);
  if (child.ok()) return child;
  return with_context(child.status(),
                      absl::StrCat(what, " '", request.filename, "'"));
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_backing(
    const BlockDriver& file, const NamedFiles& named,
    const OpenOptions& options, const OpenContext& context) {
  const bool has_one = options.backing_given || !named.backing_filename.empty();
  if (!has_one || !options.open_backing) return nullptr;
  ChildRequest request;
  request.filename = named.backing_filename;
  request.format = named.backing_format;
  request.format_can_be_stated = named.backing_format_can_be_stated;
  request.role = ChildRole::kBacking;
  return open_named(std::move(request), "backing file", file, context);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_data_file(
    const BlockDriver& file, const NamedFiles& named,
    const OpenOptions& options, const OpenContext& context) {
  const auto given = options.driver_options.find(std::string(kDataFileOption));
  const bool is_given = given != options.driver_options.end();
  if (!named.has_data_file) {
    if (!is_given) return nullptr;
    return absl::InvalidArgumentError(
        absl::StrCat("option ", kDataFileOption, "=", given->second,
                     ": 'data-file' can only be set for images with an "
                     "external data file"));
  }
  ChildRequest request;
  request.filename = is_given ? given->second : named.data_filename;
  request.role = ChildRole::kDataFile;
  request.read_only = options.read_only;
  if (request.filename.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'data-file' is required for this image: it has an "
                     "external data file and does not name it (option ",
                     kDataFileOption, ")"));
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> data_file =
      open_named(request, "data file", file, context);
  if (!data_file.ok()) return data_file;
  const std::optional<StorageIdentity> identity = (*data_file)->identity();
  if (identity.has_value() && identity == file.identity()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "data file '", request.filename, "' is the image's own file"));
  }
  return data_file;
}

}  // namespace

bool ImageFiles::can(Capability capability) const {
  return file->capabilities().has(capability) &&
         (data_file == nullptr || data_file->capabilities().has(capability));
}

ImageFiles::Reopening ImageFiles::take_reopening(ReopenOptions* options) const {
  Reopening parts{.file = options->take_below({"file"}),
                  .data_file = options->take_below({"data-file"}),
                  .backing = std::nullopt};
  ReopenOptions of_backing = options->take_below({"backing"});
  if (data_file == nullptr) {
    // Refused as the image's own.
    for (const auto& [name, value] : parts.data_file.driver_options)
      options->driver_options[absl::StrCat("data-file.", name)] = value;
  }
  const bool concerns_all =
      options->direct.has_value() || options->no_flush.has_value();
  if (backing == nullptr) {
    // Refused as the image's own.
    for (const auto& [name, value] : of_backing.driver_options)
      options->driver_options[absl::StrCat("backing.", name)] = value;
  } else if (!of_backing.driver_options.empty() ||
             (concerns_all &&
              backing->capabilities().has(Capability::kReopen))) {
    of_backing.read_only = backing->read_only();
    parts.backing = std::move(of_backing);
  }
  return parts;
}

absl::Status ImageFiles::reopen(const Reopening& options,
                                const Reopening& before) const {
  std::vector<BlockDriver*> drivers;
  if (options.backing.has_value()) drivers.push_back(backing.get());
  if (data_file != nullptr) drivers.push_back(data_file.get());
  drivers.push_back(file.get());
  const auto apply = [this](const Reopening& parts, BlockDriver& driver) {
    if (&driver == file.get()) return driver.reopen(parts.file);
    if (&driver == data_file.get()) return driver.reopen(parts.data_file);
    return parts.backing.has_value() ? driver.reopen(*parts.backing)
                                     : absl::OkStatus();
  };
  return all_or_none(
      drivers, [&](BlockDriver& driver) { return apply(options, driver); },
      [&](BlockDriver& driver) { return apply(before, driver); });
}

absl::Status ImageFiles::inactivate() const {
  return all_or_none(
      with_locks(*this),
      [](BlockDriver& driver) { return driver.inactivate(); },
      [](BlockDriver& driver) { return driver.activate(); });
}

absl::Status ImageFiles::activate() const {
  return all_or_none(
      with_locks(*this), [](BlockDriver& driver) { return driver.activate(); },
      [](BlockDriver& driver) { return driver.inactivate(); });
}

absl::Status ImageFiles::close() const {
  absl::Status first;
  for (const auto& driver : {file, data_file, backing}) {
    if (driver == nullptr) continue;
    absl::Status status = driver->close();
    if (first.ok()) first = std::move(status);
  }
  return first;
}

absl::StatusOr<ImageFiles> open_image_files(std::shared_ptr<BlockDriver> file,
                                            const NamedFiles& named,
                                            const OpenOptions& options,
                                            const OpenContext& context) {
  ImageFiles files;
  absl::StatusOr<std::shared_ptr<BlockDriver>> child =
      open_data_file(*file, named, options, context);
  if (!child.ok()) return child.status();
  files.data_file = *std::move(child);
  child = open_backing(*file, named, options, context);
  if (!child.ok()) return child.status();
  files.backing = *std::move(child);
  files.file = std::move(file);
  return files;
}

}  // namespace spindle

// ImageOpener::create(): new images.

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/child_request.h"
#include "engine/errors.h"
#include "engine/image_opener.h"

namespace spindle {
namespace {

bool lists(const std::vector<OptionHelp>& options, const std::string& name) {
  return std::any_of(
      options.begin(), options.end(),
      [&name](const OptionHelp& option) { return option.name == name; });
}

OptionMap only_listed(const OptionMap& options,
                      const std::vector<OptionHelp>& known) {
  OptionMap result;
  for (const auto& [name, value] : options) {
    if (lists(known, name)) result[name] = value;
  }
  return result;
}

// An option of both is the format's, which tells the protocol by the length
// that it asks for.
OptionMap protocol_options(const OptionMap& options, const ImageFormat& format,
                           const StorageProtocol& protocol) {
  const std::vector<OptionHelp> of_format = format.create_options();
  OptionMap result = only_listed(options, protocol.create_options());
  for (const OptionHelp& option : of_format) result.erase(option.name);
  return result;
}

absl::Status check_options(const CreateOptions& options,
                           const ImageFormat& format,
                           const StorageProtocol& protocol) {
  const std::vector<OptionHelp> of_format = format.create_options();
  const std::vector<OptionHelp> of_protocol = protocol.create_options();
  for (const auto& [name, value] : options.options) {
    if (lists(of_format, name) || lists(of_protocol, name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("format '", format.name(), "' has no creation option '",
                     name, "' (given as '", value, "')"));
  }
  return protocol.check_create(
      protocol_options(options.options, format, protocol));
}

}  // namespace

absl::StatusOr<std::string> ImageOpener::new_file_name(
    const std::string& filename) const {
  if (const DriverFilter* const filter = filter_for(filename)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Protocol driver '", filter->name(),
                     "' does not support image creation"));
  }
  std::string name = filename;
  const absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(policy_.name_syntax, &name);
  if (!protocol.ok()) return protocol.status();
  return name;
}

absl::Status ImageOpener::check_create_options(
    const std::string& filename, const std::string& format_name,
    const CreateOptions& options) const {
  const absl::StatusOr<const ImageFormat*> format = format_for(format_name);
  if (!format.ok()) return format.status();
  std::string plain_name = filename;
  const absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(policy_.name_syntax, &plain_name);
  if (!protocol.ok()) return protocol.status();
  return check_options(options, **format, **protocol);
}

absl::Status ImageOpener::create(const std::string& filename,
                                 const std::string& format_name,
                                 const CreateOptions& options) const {
  absl::StatusOr<const ImageFormat*> format = format_for(format_name);
  if (!format.ok()) return format.status();
  std::string plain_name = filename;
  absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(policy_.name_syntax, &plain_name);
  if (!protocol.ok()) return protocol.status();
  absl::Status status = check_options(options, **format, **protocol);
  if (!status.ok()) return status;

  CreateOptions complete = options;
  if (complete.secrets == nullptr) complete.secrets = policy_.secrets;
  complete.options = only_listed(options.options, (*format)->create_options());
  if (!options.backing_filename.empty()) {
    if (!(*format)->supports_backing()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "format '", format_name, "' has no backing files; '",
          options.backing_filename, "' was given as one for '", filename, "'"));
    }
    status = check_backing(filename, &complete);
    if (!status.ok()) return status;
  }
  if (!complete.size_bytes.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the size of the new image '", filename, "' is not stated"));
  }
  status = (*format)->check_create(complete);
  if (!status.ok()) return status;
  status = (*protocol)->create(
      plain_name, (*format)->initial_file_length(complete),
      protocol_options(options.options, **format, **protocol), policy_.log);
  if (!status.ok()) return status;
  absl::StatusOr<std::shared_ptr<BlockDriver>> file =
      (*protocol)->open(plain_name, OpenOptions{});
  if (!file.ok()) return file.status();
  status = create_data_file(**format, complete, **file);
  if (status.ok()) {
    status =
        (*format)->create(*file, complete, context_for(OpenOptions{}, {}, {}));
  }
  absl::Status closed = (*file)->close();
  return status.ok() ? closed : status;
}

absl::Status ImageOpener::create_data_file(const ImageFormat& format,
                                           const CreateOptions& options,
                                           const BlockDriver& image) const {
  const absl::StatusOr<std::optional<ImageFormat::NewDataFile>> wanted =
      format.new_data_file(options);
  if (!wanted.ok() || !wanted->has_value()) return wanted.status();
  std::string filename = (*wanted)->filename;
  const auto in_context = [&](const absl::Status& status) {
    return with_context(status, absl::StrCat("data file '", filename, "'"));
  };
  if (policy_.image_name_syntax == NameSyntax::kPlain &&
      has_known_prefix(filename)) {
    return in_context(absl::InvalidArgumentError(
        "a protocol prefix is not followed in a name that an image has"));
  }
  const absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(policy_.image_name_syntax, &filename);
  if (!protocol.ok()) return in_context(protocol.status());
  OpenOptions look;
  look.read_only = true;
  look.lock = false;
  const absl::StatusOr<std::shared_ptr<BlockDriver>> present =
      (*protocol)->open(filename, look);
  if (present.ok()) {
    const std::optional<StorageIdentity> identity = (*present)->identity();
    (*present)->close().IgnoreError();
    if (identity.has_value() && identity == image.identity()) {
      return in_context(
          absl::InvalidArgumentError("an image cannot be its own data file"));
    }
  }
  return (*protocol)->create(
      filename, (*wanted)->length_bytes,
      only_listed((*wanted)->options, (*protocol)->create_options()),
      policy_.log);
}

// Opens the backing file of a new image, to see that it is one and to learn its
// length; nothing is written.
absl::Status ImageOpener::check_backing(const std::string& filename,
                                        CreateOptions* options) const {
  const ChildRequest request{.filename = options->backing_filename,
                             .format = options->backing_format,
                             .role = ChildRole::kBacking,
                             .read_only = true,
                             .parent_filename = filename,
                             .depth = 1};
  if (options->backing_format.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        describe(request),
        ": its format is not stated (one of: ", registry_.format_names(), ")"));
  }
  if (registry_.find_protocol(options->backing_format) == nullptr) {
    absl::StatusOr<const ImageFormat*> known =
        format_for(options->backing_format);
    if (!known.ok()) return with_context(known.status(), describe(request));
  }
  if (options->unsafe_backing) return absl::OkStatus();

  absl::StatusOr<std::shared_ptr<BlockDriver>> backing =
      open_child(request, OpenOptions{}, {}, nullptr);
  if (!backing.ok()) return backing.status();
  absl::Status status = refuse_own_backing(filename, **backing);
  if (!options->size_bytes.has_value())
    options->size_bytes = (*backing)->length_bytes();
  absl::Status closed = (*backing)->close();
  return status.ok() ? closed : status;
}

// A new image must not overwrite a file of its own backing chain.
absl::Status ImageOpener::refuse_own_backing(const std::string& filename,
                                             const BlockDriver& backing) const {
  OpenOptions options;
  options.read_only = true;
  options.lock = false;
  const absl::StatusOr<Driver> present =
      open_description({.name = filename,
                        .syntax = policy_.name_syntax,
                        .options = {},
                        .storage = true},
                       options, {});
  if (!present.ok())
    return absl::OkStatus();  // mostly because there is none yet
  const std::optional<StorageIdentity> own = (*present)->identity();
  absl::Status status = (*present)->close();
  // Each link is owned by the one above it.
  for (const BlockDriver* link = &backing; link != nullptr;
       link = link->backing().get()) {
    if (!status.ok() || !own.has_value() || link->identity() != own) continue;
    status = absl::InvalidArgumentError(
        absl::StrCat("'", filename,
                     "' cannot be its own backing file, nor part of the chain ",
                     "below it ('", link->filename(), "')"));
  }
  return status;
}

}  // namespace spindle

#include "tools/image_opts.h"

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/image_name.h"
#include "engine/option_list.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

bool is_restricted = false;

bool is_null(absl::string_view driver) {
  return driver == "null-co" || driver == "null-aio";
}

bool is_protocol(absl::string_view driver) {
  return driver == "file" || driver == "host_device" || is_null(driver);
}

// Of what the drivers' options do to a disk: these change what it holds.
bool makes_another_disk(absl::string_view driver, absl::string_view name) {
  if (driver == "raw") return name == "offset" || name == "size";
  if (driver == "luks") return name == "key-secret";
  if (driver == "qcow2") return name == "encrypt.key-secret";
  if (driver == "file" || driver == "host_device") return name == "filename";
  if (driver == "quorum") return !absl::StartsWith(name, "children");
  if (is_null(driver)) return name == "size" || name == "read-zeroes";
  return false;
}

// The options that say which disk `nodes` describe; of the first driver that is
// not stated, `format` is the name.
OptionMap essential_options(OptionMap nodes, const std::string& format,
                            bool* is_one_file) {
  OptionMap essential;
  const OptionMap file = take_child_options("file", &nodes);
  const auto driver = nodes.find("driver");
  const std::string name = driver == nodes.end() ? format : driver->second;
  essential["driver"] = name;
  size_t own = 0;
  for (const auto& [option, value] : nodes) {
    if (!makes_another_disk(name, option)) continue;
    essential[option] = value;
    ++own;
  }
  for (size_t i = 0; name == "quorum"; ++i) {
    const std::string child = absl::StrCat("children.", i);
    const OptionMap options = take_child_options(child, &nodes);
    if (options.empty()) break;
    bool is_file = false;
    for (const auto& [option, value] :
         essential_options(options, "raw", &is_file)) {
      essential[absl::StrCat(child, ".", option)] = value;
    }
  }
  *is_one_file = is_protocol(name) && (own == 0 || !is_null(name));
  if (file.empty()) return essential;
  bool is_file = false;
  const OptionMap below = essential_options(file, "file", &is_file);
  for (const auto& [option, value] : below)
    essential[absl::StrCat("file.", option)] = value;
  *is_one_file = own == 0 && is_file && is_protocol(below.at("driver"));
  return essential;
}

// The options of an image that is named by more than a file name.
OptionMap nodes_of(const ImageArgument& image) {
  if (image.image_opts) return parse_image_opts(image.name);
  if (!is_json_name(image.name)) return {};
  absl::StatusOr<OptionMap> members = parse_json_name(image.name);
  return members.ok() ? *std::move(members) : OptionMap();
}

bool is_guessed(const ImageArgument& image) {
  return image.format.empty() && nodes_of(image).count("driver") == 0;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const SecretStore>> load_secrets(
    const std::vector<std::string>& objects) {
  if (objects.empty()) return nullptr;
  auto store = std::make_shared<SecretStore>();
  for (const std::string& object : objects) {
    const absl::Status status = store->add_object(object);
    if (!status.ok()) return status;
  }
  return store;
}

void restrict_images() { is_restricted = true; }

ImageOpener::Policy tool_policy(std::shared_ptr<const SecretStore> secrets) {
  ImageOpener::Policy policy;
  policy.probe_image = true;
  policy.probe_backing = !is_restricted;
  policy.probe_unstatable_backing = true;
  policy.name_syntax = NameSyntax::kQemu;
  policy.image_name_syntax =
      is_restricted ? NameSyntax::kPlain : NameSyntax::kQemu;
  policy.secrets = std::move(secrets);
  policy.log = [](LogSeverity severity, absl::string_view message) {
    if (severity == LogSeverity::kWarning) warn(message);
    if (severity == LogSeverity::kError) fail(message);
  };
  return policy;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const ImageOpener& opener, const ImageArgument& image,
    const OpenOptions& options) {
  if (!image.image_opts) return opener.open(image.name, image.format, options);
  return opener.open_nodes(parse_image_opts(image.name), options);
}

std::string display_name(const ImageArgument& image,
                         const std::string& filename,
                         const std::string& format) {
  const OptionMap nodes = nodes_of(image);
  bool is_one_file = true;
  const OptionMap essential = essential_options(nodes, format, &is_one_file);
  if (!nodes.empty() && !is_one_file)
    return describe_options_as_name(essential);
  // A driver's own name for what it makes up needs nothing before it.
  const std::optional<absl::string_view> prefix = protocol_prefix(filename);
  return prefix.has_value() && builtin_drivers().find_filter(*prefix) != nullptr
             ? filename
             : unmistakable_filename(filename);
}

bool states_format_once(const ImageArgument& image) {
  if (!image.image_opts || image.format.empty()) return true;
  fail("--image-opts and --format are mutually exclusive");
  return false;
}

std::shared_ptr<BlockDriver> open_or_complain(const ImageOpener& opener,
                                              const ImageArgument& image,
                                              const OpenOptions& options) {
  if (!states_format_once(image)) return nullptr;
  if (image.image_opts) parse_image_opts(image.name, ShortForms::kWarnedOf);
  absl::StatusOr<std::shared_ptr<BlockDriver>> opened =
      open_image(opener, image, options);
  if (!opened.ok()) {
    fail_to_open(image.name, opened.status());
    return nullptr;
  }
  if (!options.read_only && !options.for_check && (*opened)->read_only()) {
    fail_to_open(image.name,
                 absl::InvalidArgumentError("Block node is read-only"));
    return nullptr;
  }
  warn_if_guessed(image, **opened);
  return *std::move(opened);
}

void warn_if_guessed(const ImageArgument& image, const BlockDriver& opened) {
  if (!is_guessed(image) || opened.read_only() ||
      opened.format_name() != "raw") {
    return;
  }
  std::fflush(stdout);
  std::fprintf(
      stderr,
      "WARNING: Image format was not specified for '%s' and probing guessed "
      "raw.\n"
      "         Automatically detecting the format is dangerous for raw "
      "images, "
      "write operations on block 0 will be restricted.\n"
      "         Specify the 'raw' format explicitly to remove the "
      "restrictions.\n",
      opened.filename().c_str());
}

std::shared_ptr<BlockDriver> open_snapshot_or_complain(
    const ImageOpener& opener, const ImageArgument& image, OpenOptions options,
    const std::optional<SnapshotChoice>& snapshot) {
  std::shared_ptr<BlockDriver> disk = open_or_complain(opener, image, options);
  if (disk == nullptr || !snapshot.has_value()) return disk;
  const std::string format(disk->format_name());
  disk->close().IgnoreError();  // it was only read
  disk.reset();
  options.snapshot = snapshot;
  absl::StatusOr<std::shared_ptr<BlockDriver>> shown =
      open_image(opener, image, options);
  if (shown.ok()) return *std::move(shown);
  if (absl::IsUnimplemented(shown.status())) {
    fail(absl::StrCat("Failed to load snapshot: Block format '", format,
                      "' used by device '' does not support temporarily "
                      "loading internal snapshots"));
  } else if (absl::IsNotFound(shown.status())) {
    fail("Failed to load snapshot: Can't find snapshot");
  } else {
    fail(absl::StrCat("Failed to load snapshot: ", qemu_words(shown.status())));
  }
  return nullptr;
}

OptionMap parse_image_opts(const std::string& text, ShortForms short_forms,
                           absl::string_view implied_name) {
  OptionMap options;
  for (const OptionItem& item : split_option_list(text, implied_name)) {
    if (item.is_short && short_forms == ShortForms::kWarnedOf) {
      warn(absl::StrCat("short-form boolean option '", item.short_form,
                        "' deprecated\nPlease use ", item.name, "=", item.value,
                        " instead"));
    }
    options[item.name] = item.value;
  }
  return options;
}

void add_key_secrets(const OptionMap& creation, OptionMap* driver_options) {
  for (const auto& [name, value] : creation) {
    if (absl::EndsWith(name, "key-secret")) (*driver_options)[name] = value;
  }
}

}  // namespace spindle

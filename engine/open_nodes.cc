// ImageOpener: from descriptions (names, "name=value" options) to drivers.

#include <errno.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/image_chain.h"
#include "engine/image_opener.h"
#include "engine/node_options.h"
#include "engine/request_policy_driver.h"

namespace spindle {
namespace {

// As deep as drivers may be described one below the other.
constexpr int kMaxNodes = 64;

std::optional<std::string> take(OptionMap* options, const std::string& name) {
  auto node = options->extract(name);
  if (node.empty() || node.mapped() == kNullOption) return std::nullopt;
  return std::move(node.mapped());
}

int depth_of(const OptionMap& nodes) {
  int depth = 0;
  for (const auto& [name, value] : nodes) {
    int dots = 0;
    for (const char c : name) dots += c == '.' ? 1 : 0;
    if (dots > depth) depth = dots;
  }
  return depth;
}

absl::Status no_child(absl::string_view child) {
  return absl::InvalidArgumentError(
      absl::StrCat("A block device must be specified for \"", child, "\""));
}

// Nodes cannot be referred to by name.
absl::Status no_such_node(absl::string_view name) {
  return absl::NotFoundError(absl::StrCat("Cannot find device='", name,
                                          "' nor node-name='", name, "'"));
}

absl::Status neither_driver_nor_file() {
  return absl::InvalidArgumentError("Must specify either driver or file");
}

// What the node below a format or a filter takes over from it.
OpenOptions options_below(const OpenOptions& options) {
  OpenOptions below = options;
  below.driver_options.clear();
  below.discard = true;
  below.detect_zeroes = DetectZeroes::kOff;
  return below;
}

bool cannot_be_written(const absl::Status& status) {
  const std::optional<int> error = errno_of(status);
  return error == EACCES || error == EPERM || error == EROFS;
}

}  // namespace

ImageOpener::Description ImageOpener::describe_nodes(
    const OptionMap& nodes, const OpenOptions& options) const {
  Description what{.name = std::nullopt,
                   .syntax = policy_.name_syntax,
                   .options = nodes,
                   .storage = false};
  what.options.insert(options.driver_options.begin(),
                      options.driver_options.end());
  return what;
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_nodes(
    const OptionMap& nodes, const OpenOptions& options) const {
  return open_description(describe_nodes(nodes, options), options, {});
}

absl::StatusOr<ImageOpener::Inspected> ImageOpener::inspect_nodes(
    const OptionMap& nodes, const OpenOptions& options) const {
  return inspect_description(describe_nodes(nodes, options), options);
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_description(
    Description what, OpenOptions options, const Place& place) const {
  options.driver_options.clear();
  if (what.name.has_value() && what.syntax == NameSyntax::kQemu &&
      is_json_name(*what.name)) {
    absl::StatusOr<OptionMap> members = parse_json_name(*what.name);
    if (!members.ok()) return members.status();
    // What the caller states counts more.
    what.options.merge(*members);
    what.name.reset();
  }
  if (depth_of(what.options) > kMaxNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("drivers are nested more than ", kMaxNodes, " deep"));
  }
  const std::string driver = take(&what.options, "driver").value_or("");
  const StorageProtocol* const protocol = registry_.find_protocol(driver);
  const DriverFilter* const filter = registry_.find_filter(driver);
  const ImageFormat* const format = registry_.find_format(driver);
  if (!driver.empty() && protocol == nullptr && filter == nullptr &&
      format == nullptr) {
    return with_qemu_words(absl::InvalidArgumentError(absl::StrCat(
                               "unknown format '", driver,
                               "'; known are: ", registry_.format_names())),
                           absl::StrCat("Unknown driver '", driver, "'"));
  }
  const absl::StatusOr<NodeOptions> node = take_node_options(&what.options);
  if (!node.ok()) return node.status();
  node->apply(&options);
  if (options.force_share && !options.read_only) {
    return absl::InvalidArgumentError(
        "force-share=on can only be used with read-only images");
  }
  if (place.inspected != nullptr) place.inspected->driver = driver;
  absl::StatusOr<Driver> opened;
  if (protocol != nullptr) {
    opened = open_protocol(*protocol, std::move(what), options);
  } else if (filter != nullptr) {
    opened = open_filter(*filter, std::move(what), options, place);
  } else if (format == nullptr && what.storage) {
    opened = open_storage(std::move(what), options);
  } else {
    opened = open_format(format, std::move(what), options, place);
  }
  if (!opened.ok()) return opened;
  return apply_request_policy(*std::move(opened), options);
}

// ---- Storage ----------------------------------------------------------------

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_storage(
    Description what, const OpenOptions& options) const {
  if (what.name.has_value()) {
    // The caller's only: a name in an image leads to files.
    const DriverFilter* const filter = filter_for(*what.name);
    if (filter != nullptr)
      return open_filter(*filter, std::move(what), options, {});
    absl::StatusOr<const StorageProtocol*> protocol =
        protocol_for(what.syntax, &*what.name);
    if (!protocol.ok()) return protocol.status();
    what.syntax = NameSyntax::kPlain;  // the prefix is gone
    return open_protocol(**protocol, std::move(what), options);
  }
  const auto named = what.options.find("filename");
  if (named == what.options.end()) return neither_driver_nor_file();
  std::string filename = named->second;
  absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(NameSyntax::kPlain, &filename);
  if (!protocol.ok()) return protocol.status();
  return open_protocol(**protocol, std::move(what), options);
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_protocol(
    const StorageProtocol& protocol, Description what,
    OpenOptions options) const {
  std::string filename = take(&what.options, "filename").value_or("");
  if (what.name.has_value()) {
    filename = *what.name;
    const auto prefix = protocol_prefix(filename);
    if (what.syntax == NameSyntax::kQemu && prefix == protocol.name())
      filename.erase(0, prefix->size() + 1);
  }
  if (filename.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "The '", protocol.name(), "' block driver requires a file name"));
  }
  options.pass_discard_through =
      options.pass_discard_through && options.discard;
  options.driver_options = std::move(what.options);
  absl::StatusOr<Driver> opened = protocol.open(filename, options);
  if (opened.ok() || options.read_only || !options.auto_read_only ||
      !cannot_be_written(opened.status())) {
    return opened;
  }
  options.read_only = true;
  return protocol.open(filename, options);
}

// ---- Filters ----------------------------------------------------------------

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_filter(
    const DriverFilter& filter, Description what, OpenOptions options,
    const Place& place) const {
  const std::string child_name(filter.child_option());
  Description below{.name = std::nullopt,
                    .syntax = what.syntax,
                    .options = {},
                    .storage = what.storage || filter.is_storage()};
  if (what.name.has_value()) {
    absl::StatusOr<DriverFilter::NameMeaning> meaning =
        filter.parse_name(*what.name);
    if (!meaning.ok()) return meaning.status();
    what.options.merge(meaning->options);
    below.name = std::move(meaning->child_name);
  }
  if (filter.takes_list())
    return open_list_filter(filter, std::move(what), std::move(options), place);
  Driver child;
  if (!child_name.empty()) {
    below.options = take_child_options(child_name, &what.options);
    if (const auto reference = take(&what.options, child_name))
      return no_such_node(*reference);
    if (below.options.empty() && !below.name.has_value())
      return no_child(child_name);
    Place of_child = place;
    of_child.inspected = nullptr;
    absl::StatusOr<Driver> opened =
        open_description(std::move(below), options_below(options), of_child);
    if (!opened.ok()) return opened;
    child = *std::move(opened);
  }
  options.driver_options = std::move(what.options);
  return filter.open(std::move(child), options);
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_list_filter(
    const DriverFilter& filter, Description what, OpenOptions options,
    const Place& place) const {
  const std::string list_name(filter.child_option());
  OptionMap list = take_child_options(list_name, &what.options);
  std::vector<Description> descriptions;
  std::optional<std::string> reference;
  while (!list.empty()) {
    const std::string index = absl::StrCat(descriptions.size());
    Description below{.name = std::nullopt,
                      .syntax = what.syntax,
                      .options = take_child_options(index, &list),
                      .storage = what.storage};
    auto named = take(&list, index);
    if (below.options.empty() && !named.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Option ", list_name, " is not a valid array"));
    }
    if (!reference.has_value()) reference = std::move(named);
    descriptions.push_back(std::move(below));
  }
  if (absl::Status status =
          filter.check_list(descriptions.size(), what.options);
      !status.ok()) {
    return status;
  }
  if (reference.has_value()) return no_such_node(*reference);
  Place of_child = place;
  of_child.inspected = nullptr;
  std::vector<Driver> children;
  for (Description& below : descriptions) {
    absl::StatusOr<Driver> child =
        open_description(std::move(below), options_below(options), of_child);
    if (!child.ok()) return child;
    children.push_back(*std::move(child));
  }
  options.driver_options = std::move(what.options);
  return filter.open_list(std::move(children), options);
}

// ---- Formats ----------------------------------------------------------------

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_format_file(
    const ImageFormat* format, Description* what,
    const OpenOptions& options) const {
  Description below{.name = std::move(what->name),
                    .syntax = what->syntax,
                    .options = take_child_options("file", &what->options),
                    .storage = true};
  if (const auto reference = take(&what->options, "file")) {
    if (below.options.empty() && !below.name.has_value())
      return no_such_node(*reference);
    return absl::InvalidArgumentError(
        "Cannot reference an existing block device with additional options or "
        "a new filename");
  }
  if (below.options.empty() && !below.name.has_value())
    return format == nullptr ? neither_driver_nor_file() : no_child("file");
  OpenOptions of_file = options_below(options);
  of_file.snapshot.reset();
  return open_description(std::move(below), std::move(of_file), {});
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_format(
    const ImageFormat* format, Description what, OpenOptions options,
    const Place& place) const {
  const std::string name = what.name.value_or("");
  if (format == nullptr && place.depth == 0 && !policy_.probe_image) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the format of '", name,
        "' is not stated, and guessing it is not allowed (one of: ",
        registry_.format_names(), ")"));
  }
  absl::StatusOr<Driver> file = open_format_file(format, &what, options);
  if (!file.ok()) return file;
  return open_image(format, *std::move(file), std::move(what.options),
                    std::move(options), place);
}

absl::StatusOr<ImageOpener::Replacements> ImageOpener::take_replacements(
    const ImageFormat& format, OptionMap* own, OpenOptions* options) const {
  Replacements replacements;
  if (!format.supports_backing()) return replacements;
  OptionMap backing = take_child_options("backing", own);
  const auto reference = own->extract("backing");
  if (!reference.empty()) {
    if (reference.mapped() != kNullOption && !reference.mapped().empty()) {
      return with_contexts(no_such_node(reference.mapped()), "backing",
                           "Could not open backing file");
    }
    if (reference.mapped().empty() && policy_.log) {
      policy_.log(LogSeverity::kWarning,
                  "Use of \"backing\": \"\" is deprecated; use \"backing\": "
                  "null instead");
    }
    options->open_backing = false;
  } else if (!backing.empty()) {
    options->backing_given = true;
    replacements.backing = std::move(backing);
  }
  replacements.data_file = take_child_options("data-file", own);
  if (!replacements.data_file.empty()) {
    const auto named = replacements.data_file.find("filename");
    (*own)["data-file.filename"] =
        named == replacements.data_file.end() ? "data-file" : named->second;
  }
  return replacements;
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_image(
    const ImageFormat* format, Driver file, OptionMap own, OpenOptions options,
    const Place& place) const {
  const std::string filename = file->filename();
  const std::optional<StorageIdentity> identity = file->identity();
  if (const ChainLink* link = ChainLink::find(place.parents.get(), identity)) {
    return absl::DataLossError(absl::StrCat(
        "the backing chain is a loop: '", filename, "', number ", place.depth,
        " in the chain, is the file of '", link->filename, "' above it"));
  }
  options.probed = format == nullptr;
  if (format == nullptr) {
    absl::StatusOr<const ImageFormat*> guessed = guess_format(file);
    if (!guessed.ok()) return guessed.status();
    format = *guessed;
  }
  absl::StatusOr<Replacements> replacements =
      take_replacements(*format, &own, &options);
  if (!replacements.ok()) return replacements.status();
  options.driver_options = std::move(own);
  if (place.inspected != nullptr) {
    place.inspected->format = format;
    place.inspected->driver = std::string(format->name());
    place.inspected->options = std::move(options);
    return file;
  }
  const bool suspect =
      options.probed && place.depth > 0 && !policy_.probe_backing;
  const Place inside{std::make_shared<const ChainLink>(
                         ChainLink{filename, identity, place.parents, suspect}),
                     place.depth, nullptr};
  return format->open(std::move(file), options,
                      context_for(options, *std::move(replacements), inside));
}

}  // namespace spindle

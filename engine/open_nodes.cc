// ImageOpener::open_nodes(): drivers from "name=value" options.

#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/image_opener.h"

namespace spindle {
namespace {

// As deep as drivers may be described one below the other.
constexpr int kMaxNodes = 64;

std::optional<std::string> take(OptionMap* options, const std::string& name) {
  const auto found = options->find(name);
  if (found == options->end()) return std::nullopt;
  std::string value = std::move(found->second);
  options->erase(found);
  return value;
}

// The options of the driver below: those that begin with "child.", without it.
OptionMap take_child(OptionMap* options, absl::string_view child) {
  const std::string prefix = absl::StrCat(child, ".");
  OptionMap below;
  for (auto it = options->lower_bound(prefix);
       it != options->end() && absl::StartsWith(it->first, prefix);) {
    below[it->first.substr(prefix.size())] = std::move(it->second);
    it = options->erase(it);
  }
  return below;
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

absl::Status no_such_option(absl::string_view kind, absl::string_view driver,
                            const OptionMap& rest) {
  return absl::InvalidArgumentError(
      absl::StrCat("Block ", kind, " '", driver, "' does not support the ",
                   "option '", rest.begin()->first, "'"));
}

absl::Status no_child(absl::string_view driver, absl::string_view child) {
  return absl::InvalidArgumentError(
      absl::StrCat("A block device must be specified for \"", child,
                   "\" of driver '", driver, "'"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_nodes(
    const OptionMap& nodes, const OpenOptions& options) const {
  if (depth_of(nodes) > kMaxNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("drivers are nested more than ", kMaxNodes, " deep"));
  }
  OptionMap rest = nodes;
  const std::optional<std::string> filename = take(&rest, "filename");
  std::string driver = take(&rest, "driver").value_or("");
  if (driver.empty() && filename.has_value()) {
    const absl::StatusOr<const StorageProtocol*> claims =
        protocol_for(*filename);
    if (!claims.ok()) return claims.status();
    driver = std::string((*claims)->name());
  }
  const StorageProtocol* const protocol = registry_.find_protocol(driver);
  const DriverFilter* const filter = registry_.find_filter(driver);
  const ImageFormat* const format = registry_.find_format(driver);
  if (protocol != nullptr) {
    if (!rest.empty()) return no_such_option("protocol", driver, rest);
    if (!filename.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("driver '", driver, "' requires a 'filename' option"));
    }
    OpenOptions of_file = options;
    of_file.driver_options.clear();
    return protocol->open(*filename, of_file);
  }
  if (filter == nullptr && format == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("Unknown driver '", driver, "'"));
  }
  if (filename.has_value())
    return no_such_option("format", driver, {{"filename", *filename}});

  const absl::string_view child_name =
      filter != nullptr ? filter->child_option() : "file";
  std::shared_ptr<BlockDriver> child;
  if (!child_name.empty()) {
    const OptionMap below = take_child(&rest, child_name);
    if (below.empty()) return no_child(driver, child_name);
    absl::StatusOr<std::shared_ptr<BlockDriver>> opened =
        open_nodes(below, options);
    if (!opened.ok()) return opened;
    child = *std::move(opened);
  }
  OpenOptions own = options;
  own.driver_options = std::move(rest);
  if (filter != nullptr) return filter->open(std::move(child), own);
  const std::string name = child->filename();
  return open_image(name, format, std::move(child), std::move(own), nullptr, 0);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_blkdebug_name(
    const std::string& filename, const OpenOptions& options) const {
  const size_t config = filename.find(':') + 1;
  const size_t image = filename.find(':', config);
  if (image == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", filename, "' is not of the form blkdebug:CONFIG:FILENAME"));
  }
  OptionMap nodes = {{"driver", "blkdebug"},
                     {"image.filename", filename.substr(image + 1)}};
  if (image > config) nodes["config"] = filename.substr(config, image - config);
  return open_nodes(nodes, options);
}

}  // namespace spindle

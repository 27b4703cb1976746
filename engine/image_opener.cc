#include "engine/image_opener.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/child_request.h"
#include "engine/errors.h"
#include "engine/image_chain.h"

namespace spindle {
namespace {

constexpr size_t kProbeBytes = size_t{64} << 10;

absl::string_view qemu_context(ChildRole role) {
  return role == ChildRole::kBacking ? "Could not open backing file" : "";
}

}  // namespace

ImageOpener::ImageOpener(DriverRegistry registry, Policy policy)
    : registry_(std::move(registry)), policy_(std::move(policy)) {}

// ---- Opening ----------------------------------------------------------------

ImageOpener::Description ImageOpener::describe_name(
    const std::string& filename, const std::string& format,
    const OpenOptions& options) const {
  Description what{.name = filename,
                   .syntax = policy_.name_syntax,
                   .options = options.driver_options,
                   .storage = false};
  if (!format.empty()) what.options["driver"] = format;
  return what;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open(
    const std::string& filename, const std::string& format,
    const OpenOptions& options) const {
  return open_description(describe_name(filename, format, options), options,
                          {});
}

absl::StatusOr<ImageOpener::Inspected> ImageOpener::inspect(
    const std::string& filename, const std::string& format,
    const OpenOptions& options) const {
  return inspect_description(describe_name(filename, format, options), options);
}

absl::StatusOr<ImageOpener::Inspected> ImageOpener::inspect_description(
    Description what, const OpenOptions& options) const {
  Inspected inspected;
  inspected.options = options;
  Place place;
  place.inspected = &inspected;
  absl::StatusOr<Driver> file =
      open_description(std::move(what), options, place);
  if (!file.ok()) return file.status();
  inspected.file = *std::move(file);
  return inspected;
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_child(
    const ChildRequest& request, const OpenOptions& parent_options,
    const Replacements& replacements, const Chain& parents) const {
  if (request.depth > kMaxChainDepth) {
    return absl::OutOfRangeError(
        absl::StrCat(describe(request), ": a chain of ", request.depth,
                     " files is longer than the limit of ", kMaxChainDepth));
  }
  Description what{.name = std::nullopt,
                   .syntax = policy_.image_name_syntax,
                   .options = {},
                   .storage = false};
  const bool is_data_file = request.role == ChildRole::kDataFile;
  if (is_data_file) {
    what.options = replacements.data_file;
  } else if (replacements.backing.has_value()) {
    what.options = *replacements.backing;
  }
  // What the caller describes in full is not the image's to name.
  const absl::string_view given = is_data_file ? "filename" : "file.filename";
  if (what.options.count(std::string(given)) == 0) {
    const absl::Status status = check_child(request, parents);
    if (!status.ok()) return status;
    what.name = request.filename;
  }
  OpenOptions options = parent_options;
  options.read_only = request.read_only;
  options.force_share = parent_options.force_share && request.read_only;
  options.driver_options.clear();
  options.snapshot.reset();
  options.discard = true;
  options.detect_zeroes = DetectZeroes::kOff;
  options.backing_given = false;
  absl::StatusOr<Driver> child =
      is_data_file
          ? open_data_file(std::move(what), std::move(options), parents)
          : open_backing(request, std::move(what), std::move(options), parents);
  if (child.ok()) return child;
  return with_contexts(child.status(), describe(request),
                       qemu_context(request.role));
}

absl::Status ImageOpener::check_child(const ChildRequest& request,
                                      const Chain& parents) const {
  if (parents != nullptr && parents->names_are_suspect) {
    return absl::PermissionDeniedError(absl::StrCat(
        describe(request), ": the format of '", parents->filename,
        "' was guessed, and what a guess names is not opened; the option "
        "backing.driver states a format"));
  }
  absl::Status status = check_image_name(policy_.image_name_syntax, request);
  if (status.ok() && policy_.child_policy)
    status = with_context(policy_.child_policy(request), describe(request));
  return status;
}

absl::StatusOr<ImageOpener::Driver> ImageOpener::open_backing(
    const ChildRequest& request, Description what, OpenOptions options,
    const Chain& parents) const {
  if (what.name.has_value()) {
    what.name = resolve_backing_filename(what.syntax, request.parent_filename,
                                         *what.name);
  }
  if (!request.format.empty()) what.options.insert({"driver", request.format});
  const bool may_guess =
      policy_.probe_backing ||
      (policy_.probe_unstatable_backing && !request.format_can_be_stated);
  if (what.options.count("driver") == 0 && !may_guess) {
    return absl::InvalidArgumentError(
        "the image does not state its format, and guessing it is not allowed; "
        "the option backing.driver states it");
  }
  return open_description(std::move(what), std::move(options),
                          {parents, request.depth, nullptr});
}

// The guest's bytes as they are: no format, and so nothing to guess.
absl::StatusOr<ImageOpener::Driver> ImageOpener::open_data_file(
    Description what, OpenOptions options, const Chain& parents) const {
  what.storage = true;
  absl::StatusOr<Driver> child =
      open_description(std::move(what), std::move(options), {});
  if (!child.ok()) return child;
  if (const ChainLink* link =
          ChainLink::find(parents.get(), (*child)->identity())) {
    return absl::DataLossError(absl::StrCat("it is the file of the image '",
                                            link->filename, "' itself"));
  }
  return child;
}

OpenContext ImageOpener::context_for(const OpenOptions& options,
                                     Replacements replacements,
                                     const Place& place) const {
  OpenContext context;
  context.open_child = [opener = *this, options,
                        replacements = std::move(replacements),
                        place](const ChildRequest& request) {
    ChildRequest linked = request;
    // A format counts from its own image, at best; the chain knows better.
    linked.depth = place.depth + 1;
    return opener.open_child(linked, options, replacements, place.parents);
  };
  context.log = policy_.log;
  context.secrets = policy_.secrets;
  context.depth = place.depth;
  return context;
}

// ---- Choosing ---------------------------------------------------------------

absl::StatusOr<const StorageProtocol*> ImageOpener::protocol_for(
    NameSyntax syntax, std::string* filename) const {
  const auto prefix = protocol_prefix(*filename);
  if (syntax == NameSyntax::kQemu && prefix.has_value()) {
    const StorageProtocol* named = registry_.find_protocol(*prefix);
    if (named == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("Unknown protocol '", *prefix, "'"));
    }
    filename->erase(0, prefix->size() + 1);
    return named;
  }
  for (const StorageProtocol* protocol : registry_.protocols) {
    if (protocol->claims(*filename)) return protocol;
  }
  if (const StorageProtocol* file = registry_.find_protocol("file"))
    return file;
  return absl::InvalidArgumentError(
      absl::StrCat("no storage protocol knows how to open '", *filename, "'"));
}

const DriverFilter* ImageOpener::filter_for(absl::string_view name) const {
  const auto prefix = protocol_prefix(name);
  const DriverFilter* const filter =
      prefix.has_value() ? registry_.find_filter(*prefix) : nullptr;
  return filter != nullptr && filter->is_storage() ? filter : nullptr;
}

absl::StatusOr<const ImageFormat*> ImageOpener::format_for(
    const std::string& format_name) const {
  if (const ImageFormat* format = registry_.find_format(format_name))
    return format;
  return with_qemu_words(absl::InvalidArgumentError(absl::StrCat(
                             "unknown format '", format_name,
                             "'; known are: ", registry_.format_names())),
                         absl::StrCat("Unknown driver '", format_name, "'"));
}

absl::StatusOr<const ImageFormat*> ImageOpener::guess_format(
    const std::shared_ptr<BlockDriver>& file) const {
  // Zeroes follow the end of a short file: one that is cut within its header
  // must not pass for raw, or a guest could be given the header to write to.
  std::vector<uint8_t> head(kProbeBytes);
  ByteChannel channel(file);
  absl::Status status =
      channel.read(Purpose::kProbe, head.data(),
                   std::min<uint64_t>(file->length_bytes(), head.size()), 0);
  if (!status.ok()) {
    return with_context(status, absl::StrCat("guessing the format of '",
                                             file->filename(), "'"));
  }
  const ImageFormat* best = nullptr;
  int best_score = 0;
  for (const ImageFormat* format : registry_.formats) {
    const int score = format->probe(head, file->filename());
    if (score <= best_score) continue;
    best = format;
    best_score = score;
  }
  if (best != nullptr) return best;
  return absl::InvalidArgumentError(absl::StrCat(
      "'", file->filename(),
      "' has none of the known formats: ", registry_.format_names()));
}

absl::StatusOr<std::string> ImageOpener::probe(
    const std::string& filename) const {
  OpenOptions options;
  options.read_only = true;
  options.force_share = true;
  absl::StatusOr<Driver> file = open_description({.name = filename,
                                                  .syntax = policy_.name_syntax,
                                                  .options = {},
                                                  .storage = true},
                                                 options, {});
  if (!file.ok()) return file.status();
  absl::StatusOr<const ImageFormat*> format = guess_format(*file);
  absl::Status closed = (*file)->close();
  if (!format.ok()) return format.status();
  if (!closed.ok()) return closed;
  return std::string((*format)->name());
}

}  // namespace spindle

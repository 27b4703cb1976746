#include "engine/image_opener.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/errors.h"

namespace spindle {

struct ImageOpener::ChainLink {
  std::string filename;
  std::optional<StorageIdentity> identity;
  Chain parent;
};

namespace {

constexpr size_t kProbeBytes = size_t{64} << 10;

// What stands before a ':' when a name is meant as more than a file name.
constexpr absl::string_view kKnownPrefixes[] = {
    "blkdebug",     "blklogwrites", "blkreplay",   "blkverify",  "compress",
    "copy-on-read", "dmg",          "driver",      "fat",        "file",
    "ftp",          "ftps",         "gluster",     "host_cdrom", "host_device",
    "http",         "https",        "iscsi",       "iser",       "json",
    "luks",         "nbd",          "nfs",         "null-aio",   "null-co",
    "nvme",         "preallocate",  "qcow",        "qcow2",      "quorum",
    "raw",          "rbd",          "replication", "sheepdog",   "ssh",
    "throttle",     "vdi",          "vfat",        "vhdx",       "vmdk",
    "vpc",          "vvfat",
};

// The protocol prefix of `filename`, or nothing.  "gluster+tcp:" counts as
// "gluster:".
std::optional<absl::string_view> known_prefix(absl::string_view filename) {
  const size_t end = filename.find_first_of(":/");
  if (end == absl::string_view::npos || filename[end] != ':')
    return std::nullopt;
  const absl::string_view prefix = filename.substr(0, end);
  const absl::string_view scheme = prefix.substr(0, prefix.find('+'));
  for (absl::string_view known : kKnownPrefixes) {
    if (absl::EqualsIgnoreCase(scheme, known)) return prefix;
  }
  return std::nullopt;
}

absl::string_view role_name(ChildRole role) {
  switch (role) {
    case ChildRole::kFile:
      return "file";
    case ChildRole::kBacking:
      return "backing file";
    case ChildRole::kDataFile:
      return "data file";
  }
  return "file";
}

// "backing file 'b.img' (number 2 in the chain) of 'a.qcow2'"
std::string describe(const ChildRequest& request) {
  return absl::StrCat(role_name(request.role), " '", request.filename,
                      "' (number ", request.depth, " in the chain) of '",
                      request.parent_filename, "'");
}

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

absl::Status check_option_names(const CreateOptions& options,
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
  return absl::OkStatus();
}

}  // namespace

ImageOpener::ImageOpener(DriverRegistry registry, Policy policy)
    : registry_(std::move(registry)), policy_(std::move(policy)) {}

// ---- Opening ----------------------------------------------------------------

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open(
    const std::string& filename, const std::string& format,
    const OpenOptions& options) const {
  if (format.empty() && !policy_.probe_image) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the format of '", filename,
        "' is not stated, and guessing it is not allowed (one of: ",
        registry_.format_names(), ")"));
  }
  return open_linked(filename, format, options, nullptr, 0);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_file(
    const std::string& filename, const OpenOptions& options) const {
  if (absl::StartsWith(filename, "blkdebug:") &&
      registry_.find_filter("blkdebug") != nullptr) {
    return open_blkdebug_name(filename, options);
  }
  absl::StatusOr<const StorageProtocol*> protocol = protocol_for(filename);
  if (!protocol.ok()) return protocol.status();
  return (*protocol)->open(filename, options);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_linked(
    const std::string& filename, const std::string& format_name,
    OpenOptions options, const Chain& parents, int depth) const {
  if (const StorageProtocol* protocol = registry_.find_protocol(format_name)) {
    return protocol->open(filename, options);
  }
  const ImageFormat* format = nullptr;
  if (!format_name.empty()) {
    absl::StatusOr<const ImageFormat*> stated = format_for(format_name);
    if (!stated.ok())
      return with_context(stated.status(), absl::StrCat("'", filename, "'"));
    format = *stated;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> file =
      open_file(filename, options);
  if (!file.ok()) return file.status();
  return open_image(filename, format, *std::move(file), std::move(options),
                    parents, depth);
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_image(
    const std::string& filename, const ImageFormat* format,
    std::shared_ptr<BlockDriver> file, OpenOptions options,
    const Chain& parents, int depth) const {
  const std::optional<StorageIdentity> identity = file->identity();
  for (const ChainLink* link = parents.get(); link != nullptr;
       link = link->parent.get()) {
    if (!identity.has_value() || link->identity != identity) continue;
    return absl::DataLossError(absl::StrCat(
        "the backing chain is a loop: '", filename, "', number ", depth,
        " in the chain, is the file of '", link->filename, "' above it"));
  }
  options.probed = format == nullptr;
  if (format == nullptr) {
    absl::StatusOr<const ImageFormat*> guessed = guess_format(file);
    if (!guessed.ok()) return guessed.status();
    format = *guessed;
  }
  const Chain chain =
      std::make_shared<const ChainLink>(ChainLink{filename, identity, parents});
  return format->open(std::move(file), options,
                      context_for(options, chain, depth));
}

absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_child(
    const ChildRequest& request, const OpenOptions& parent_options,
    const Chain& parents) const {
  if (request.depth > kMaxChainDepth) {
    return absl::OutOfRangeError(
        absl::StrCat(describe(request), ": a chain of ", request.depth,
                     " files is longer than the limit of ", kMaxChainDepth));
  }
  if (const std::optional<absl::string_view> prefix =
          known_prefix(request.filename)) {
    return absl::InvalidArgumentError(
        absl::StrCat(describe(request), ": the protocol prefix '", *prefix,
                     ":' is not followed in a name that comes from an image"));
  }
  if (policy_.child_policy) {
    absl::Status allowed = policy_.child_policy(request);
    if (!allowed.ok()) return with_context(allowed, describe(request));
  }
  if (request.role == ChildRole::kDataFile)
    return open_data_file(request, parent_options, parents);
  if (request.format.empty() && !policy_.probe_backing) {
    return absl::InvalidArgumentError(
        absl::StrCat(describe(request),
                     ": the image does not state its format, and guessing it "
                     "is not allowed"));
  }
  OpenOptions options = parent_options;
  options.read_only = request.read_only;
  options.force_share = parent_options.force_share && request.read_only;
  options.driver_options.clear();
  options.snapshot.reset();
  absl::StatusOr<std::shared_ptr<BlockDriver>> child = open_linked(
      resolve_backing_filename(request.parent_filename, request.filename),
      request.format, options, parents, request.depth);
  if (!child.ok()) return with_context(child.status(), describe(request));
  return child;
}

// The guest's bytes as they are: no format, and so nothing to guess.
absl::StatusOr<std::shared_ptr<BlockDriver>> ImageOpener::open_data_file(
    const ChildRequest& request, const OpenOptions& options,
    const Chain& parents) const {
  OpenOptions of_child = options;
  of_child.read_only = request.read_only;
  of_child.driver_options.clear();
  absl::StatusOr<std::shared_ptr<BlockDriver>> child =
      open_file(request.filename, of_child);
  if (!child.ok()) return with_context(child.status(), describe(request));
  const std::optional<StorageIdentity> identity = (*child)->identity();
  for (const ChainLink* link = parents.get(); link != nullptr;
       link = link->parent.get()) {
    if (!identity.has_value() || link->identity != identity) continue;
    return absl::DataLossError(absl::StrCat(describe(request),
                                            " is the file of the image '",
                                            link->filename, "' itself"));
  }
  return child;
}

OpenContext ImageOpener::context_for(const OpenOptions& options,
                                     const Chain& chain, int depth) const {
  OpenContext context;
  context.open_child = [opener = *this, options, chain,
                        depth](const ChildRequest& request) {
    ChildRequest linked = request;
    // A format counts from its own image, at best; the chain knows better.
    linked.depth = depth + 1;
    return opener.open_child(linked, options, chain);
  };
  context.log = policy_.log;
  context.secrets = policy_.secrets;
  context.depth = depth;
  return context;
}

// ---- Choosing ---------------------------------------------------------------

absl::StatusOr<const StorageProtocol*> ImageOpener::protocol_for(
    const std::string& filename) const {
  for (const StorageProtocol* protocol : registry_.protocols) {
    if (protocol->claims(filename)) return protocol;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no storage protocol knows how to open '", filename, "'"));
}

absl::StatusOr<const ImageFormat*> ImageOpener::format_for(
    const std::string& format_name) const {
  if (const ImageFormat* format = registry_.find_format(format_name))
    return format;
  return absl::InvalidArgumentError(
      absl::StrCat("unknown format '", format_name,
                   "'; known are: ", registry_.format_names()));
}

absl::StatusOr<const ImageFormat*> ImageOpener::guess_format(
    const std::shared_ptr<BlockDriver>& file) const {
  std::vector<uint8_t> head(
      std::min<uint64_t>(file->length_bytes(), kProbeBytes));
  ByteChannel channel(file);
  absl::Status status =
      channel.read(Purpose::kProbe, head.data(), head.size(), 0);
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
  absl::StatusOr<std::shared_ptr<BlockDriver>> file =
      open_file(filename, options);
  if (!file.ok()) return file.status();
  absl::StatusOr<const ImageFormat*> format = guess_format(*file);
  absl::Status closed = (*file)->close();
  if (!format.ok()) return format.status();
  if (!closed.ok()) return closed;
  return std::string((*format)->name());
}

// ---- Creating ---------------------------------------------------------------

absl::Status ImageOpener::create(const std::string& filename,
                                 const std::string& format_name,
                                 const CreateOptions& options) const {
  absl::StatusOr<const ImageFormat*> format = format_for(format_name);
  if (!format.ok()) return format.status();
  absl::StatusOr<const StorageProtocol*> protocol = protocol_for(filename);
  if (!protocol.ok()) return protocol.status();
  absl::Status status = check_option_names(options, **format, **protocol);
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
      filename, (*format)->initial_file_length(complete),
      only_listed(options.options, (*protocol)->create_options()));
  if (!status.ok()) return status;
  absl::StatusOr<std::shared_ptr<BlockDriver>> file =
      (*protocol)->open(filename, OpenOptions{});
  if (!file.ok()) return file.status();
  status = create_data_file(**format, complete, **file);
  if (status.ok()) {
    status = (*format)->create(*file, complete,
                               context_for(OpenOptions{}, nullptr, 0));
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
  const std::string& filename = (*wanted)->filename;
  const auto in_context = [&](const absl::Status& status) {
    return with_context(status, absl::StrCat("data file '", filename, "'"));
  };
  if (known_prefix(filename).has_value()) {
    return in_context(absl::InvalidArgumentError(
        "a protocol prefix is not followed in a name that an image has"));
  }
  OpenOptions look;
  look.read_only = true;
  look.lock = false;
  absl::StatusOr<std::shared_ptr<BlockDriver>> present =
      open_file(filename, look);
  if (present.ok()) {
    const std::optional<StorageIdentity> identity = (*present)->identity();
    (*present)->close().IgnoreError();
    if (identity.has_value() && identity == image.identity()) {
      return in_context(
          absl::InvalidArgumentError("an image cannot be its own data file"));
    }
  }
  const absl::StatusOr<const StorageProtocol*> protocol =
      protocol_for(filename);
  if (!protocol.ok()) return in_context(protocol.status());
  return (*protocol)->create(
      filename, (*wanted)->length_bytes,
      only_listed((*wanted)->options, (*protocol)->create_options()));
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
      open_child(request, OpenOptions{}, nullptr);
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
  absl::StatusOr<std::shared_ptr<BlockDriver>> present =
      open_file(filename, options);
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

std::string resolve_backing_filename(const std::string& parent_filename,
                                     const std::string& filename) {
  if (filename.empty() || filename.front() == '/') return filename;
  const size_t slash = parent_filename.rfind('/');
  if (slash == std::string::npos) return filename;
  return absl::StrCat(parent_filename.substr(0, slash + 1), filename);
}

}  // namespace spindle

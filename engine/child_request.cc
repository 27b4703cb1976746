#include "engine/child_request.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

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
  const std::optional<absl::string_view> prefix = protocol_prefix(filename);
  if (!prefix.has_value()) return std::nullopt;
  const absl::string_view scheme = prefix->substr(0, prefix->find('+'));
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

}  // namespace

std::string describe(const ChildRequest& request) {
  return absl::StrCat(role_name(request.role), " '", request.filename,
                      "' (number ", request.depth, " in the chain) of '",
                      request.parent_filename, "'");
}

absl::Status check_image_name(NameSyntax syntax, const ChildRequest& request) {
  if (syntax == NameSyntax::kQemu) return absl::OkStatus();
  const std::optional<absl::string_view> prefix =
      known_prefix(request.filename);
  if (!prefix.has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(describe(request), ": the protocol prefix '", *prefix,
                   ":' is not followed in a name that comes from an image"));
}

bool has_known_prefix(absl::string_view filename) {
  return known_prefix(filename).has_value();
}

}  // namespace spindle

#include "tools/io_target.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/image_name.h"
#include "engine/image_opener.h"
#include "engine/node_options.h"
#include "formats/builtin.h"
#include "tools/cli_text.h"
#include "tools/image_opts.h"

namespace spindle {
namespace {

absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
    const ImageOpener& opener, const IoTarget& target,
    const OpenOptions& options) {
  if (!target.filename.has_value())
    return opener.open_nodes(target.options, options);
  OpenOptions of_image = options;
  of_image.driver_options = target.options;
  auto driver = of_image.driver_options.extract("driver");
  return opener.open(*target.filename,
                     driver.empty() ? std::string() : driver.mapped(),
                     of_image);
}

ImageArgument as_argument(const IoTarget& target) {
  const auto driver = target.options.find("driver");
  return {
      .name = target.filename.value_or(""),
      .format = driver == target.options.end() ? std::string() : driver->second,
  };
}

OpenOptions open_options(const IoTarget& target) {
  OpenOptions options = tool_open_options();
  options.read_only = target.read_only;
  options.force_share = target.force_share;
  options.pass_discard_through = !target.ignore_discards;
  apply_cache_mode(target.cache_mode, &options);
  return options;
}

// The image as the backing file of another one.
OptionMap as_backing(const IoTarget& target) {
  OptionMap options;
  for (const auto& [name, value] : target.options)
    options[absl::StrCat("backing.", name)] = value;
  return options;
}

// A name that means the same from another folder.
std::string absolute_name(const std::string& name) {
  if (is_json_name(name) || protocol_prefix(name).has_value()) return name;
  std::error_code error;
  return std::filesystem::absolute(name, error).string();
}

// What a new overlay over `target` must say of it.
absl::StatusOr<CreateOptions> overlay_options(const ImageOpener& opener,
                                              const IoTarget& target) {
  OpenOptions options = open_options(target);
  options.read_only = true;
  const absl::StatusOr<std::shared_ptr<BlockDriver>> backing =
      open_driver(opener, target, options);
  if (!backing.ok()) return backing.status();
  CreateOptions create;
  create.size_bytes = (*backing)->length_bytes();
  const std::string format((*backing)->format_name());
  (*backing)->close().IgnoreError();  // it was only looked at
  if (!target.filename.has_value()) return create;
  create.backing_filename = absolute_name(*target.filename);
  create.unsafe_backing = true;
  const auto driver = target.options.find("driver");
  create.backing_format =
      driver == target.options.end() ? format : driver->second;
  return create;
}

// As QEMU chooses it: /tmp may be memory.
std::string temporary_folder() {
  const char* const folder = ::getenv("TMPDIR");
  const bool is_named =
      folder != nullptr && *folder != '\0' && std::strcmp(folder, "/tmp") != 0;
  return is_named ? folder : "/var/tmp";
}

// The overlay loses its name at once; `fd` remains.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_overlay(
    const ImageOpener& opener, const IoTarget& target, int* fd) {
  const absl::StatusOr<CreateOptions> create = overlay_options(opener, target);
  if (!create.ok()) return create.status();
  // mkostemp() puts a name in place of the letters X.
  std::string name = absl::StrCat(temporary_folder(), "/spindle.XXXXXX");
  *fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (*fd < 0) {
    return errno_status(
        errno, absl::StrCat("Could not open temporary file '", name, "'"));
  }
  const absl::Status created = opener.create(name, "qcow2", *create);
  OpenOptions options = open_options(target);
  apply_cache_mode(CacheMode::kUnsafe, &options);
  options.driver_options = as_backing(target);
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      created.ok() ? opener.open(name, "qcow2", options) : created;
  ::unlink(name.c_str());
  return driver;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> under_copy_on_read(
    std::shared_ptr<BlockDriver> driver) {
  if (driver->read_only()) {
    return absl::InvalidArgumentError(
        "Can't use copy-on-read on read-only device");
  }
  const DriverFilter* const filter =
      builtin_drivers().find_filter("copy-on-read");
  return filter->open(std::move(driver), {});
}

// Takes out of the options what can be changed later: it is not for drivers.
absl::Status take_changeable(IoTarget* target, OpenedTarget* opened) {
  absl::StatusOr<NodeOptions> node = take_node_options(&target->options);
  if (!node.ok()) return node.status();
  const bool was_read_only = target->read_only;
  target->ignore_discards = !node->discard.value_or(!target->ignore_discards);
  target->read_only = node->read_only.value_or(target->read_only);
  target->force_share = node->force_share.value_or(target->force_share);
  opened->ignore_discards = target->ignore_discards;
  opened->detect_zeroes = node->detect_zeroes.value_or(DetectZeroes::kOff);
  // Commands that write are promised that they can.
  if (target->read_only && !was_read_only)
    return absl::InvalidArgumentError("Block node is read-only");
  if (target->force_share && !target->read_only) {
    return absl::InvalidArgumentError(
        "force-share=on can only be used with read-only images");
  }
  OpenOptions access;
  apply_cache_mode(target->cache_mode, &access);
  const bool direct = node->direct.value_or(access.direct);
  if (target->native_aio && !direct) {
    return absl::InvalidArgumentError(
        "aio=native was specified, but it requires cache.direct=on, which was "
        "not specified.");
  }
  // Back, for the driver.
  const auto put = [target](const char* name, std::optional<bool> value) {
    if (value.has_value()) target->options[name] = *value ? "on" : "off";
  };
  put("cache.direct", node->direct);
  put("cache.no-flush", node->no_flush);
  put("auto-read-only", node->auto_read_only);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<OpenedTarget> open_target(
    const IoTarget& wanted, std::shared_ptr<const SecretStore> secrets) {
  IoTarget target = wanted;
  OpenedTarget opened;
  opened.cache_mode = target.snapshot ? CacheMode::kUnsafe : target.cache_mode;
  absl::Status status = take_changeable(&target, &opened);
  if (!status.ok()) return status;
  const ImageOpener opener(builtin_drivers(), tool_policy(std::move(secrets)));
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      target.snapshot ? open_overlay(opener, target, &opened.overlay_fd)
                      : open_driver(opener, target, open_options(target));
  if (driver.ok() && !target.snapshot)
    warn_if_guessed(as_argument(target), **driver);
  if (driver.ok() && target.copy_on_read)
    driver = under_copy_on_read(*std::move(driver));
  if (!driver.ok()) {
    if (opened.overlay_fd >= 0) ::close(opened.overlay_fd);
    return driver.status();
  }
  opened.driver = *std::move(driver);
  return opened;
}

}  // namespace spindle

#include "formats/raw/protocols.h"

#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "formats/raw/create_file.h"
#include "formats/raw/file_driver.h"
#include "formats/raw/host_device_driver.h"
#include "formats/raw/protocol_options.h"

namespace spindle {
namespace {

class FileProtocol final : public StorageProtocol {
 public:
  absl::string_view name() const override { return "file"; }
  bool claims(const std::string& filename) const override {
    return !filename.empty();
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::string& filename, const OpenOptions& options) const override {
    const auto own = apply_protocol_options(name(), options);
    if (!own.ok()) return own.status();
    return FileDriver::open(filename, *own);
  }

  absl::Status check_create(const OptionMap& options) const override {
    return parse_file_create_options(options).status();
  }

  absl::Status create(const std::string& filename, uint64_t length_bytes,
                      const OptionMap& options,
                      const LogSink& log) const override {
    const absl::StatusOr<FileCreateOptions> parsed =
        parse_file_create_options(options);
    if (!parsed.ok()) return parsed.status();
    return create_file(filename, length_bytes, *parsed, log);
  }

  std::vector<OptionHelp> create_options() const override {
    return file_create_options();
  }
};

class HostDeviceProtocol final : public StorageProtocol {
 public:
  absl::string_view name() const override { return "host_device"; }

  bool claims(const std::string& filename) const override {
    struct stat facts = {};
    return ::stat(filename.c_str(), &facts) == 0 && S_ISBLK(facts.st_mode);
  }

  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      const std::string& filename, const OpenOptions& options) const override {
    const auto own = apply_protocol_options(name(), options);
    if (!own.ok()) return own.status();
    return HostDeviceDriver::open(filename, *own);
  }

  absl::Status create(const std::string& filename, uint64_t length_bytes,
                      const OptionMap& options, const LogSink&) const override {
    if (!options.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("Invalid parameter '",
                                                     options.begin()->first,
                                                     "' for a block device"));
    }
    const auto device = HostDeviceDriver::open(filename, OpenOptions{});
    if (!device.ok()) return device.status();
    return (*device)->set_length(length_bytes, SetLengthMode::kGrowOnly);
  }
};

}  // namespace

const StorageProtocol* file_protocol() {
  static const auto* const protocol = new FileProtocol();
  return protocol;
}

const StorageProtocol* host_device_protocol() {
  static const auto* const protocol = new HostDeviceProtocol();
  return protocol;
}

}  // namespace spindle

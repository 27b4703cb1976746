// What the commands have in common to open images that need more than a file
// name: "--object secret,..." and "--image-opts".
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_IMAGE_OPTS_H_
#define SPINDLE_TOOLS_IMAGE_OPTS_H_

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/secret_store.h"

namespace spindle {

// Adds "--object"; each is a text for SecretStore::add_object().
void add_object_option(CLI::App* command, std::vector<std::string>* objects);

// Null if there are none.
absl::StatusOr<std::shared_ptr<const SecretStore>> load_secrets(
    const std::vector<std::string>& objects);

// Opens `name` as `format`; or, with `image_opts`, what the list `name`
// describes ("driver=luks,key-secret=sec0,file.filename=a.luks").
absl::StatusOr<std::shared_ptr<BlockDriver>> open_named(
    const ImageOpener& opener, const std::string& name,
    const std::string& format, bool image_opts, const OpenOptions& options);

// Copies what of creation options names a secret: needed to open what was made.
void add_key_secrets(const OptionMap& creation, OptionMap* driver_options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_OPTS_H_

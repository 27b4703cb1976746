// What the programs have in common to name and open images: file names as QEMU
// reads them, "--image-opts", "--object secret,...", and what "--restrict"
// forbids.
//
// Thread safety: functions without state, except where they say otherwise.
#ifndef SPINDLE_TOOLS_IMAGE_OPTS_H_
#define SPINDLE_TOOLS_IMAGE_OPTS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "engine/secret_store.h"

namespace spindle {

// Each is a text after "--object".  Null if there are none.
absl::StatusOr<std::shared_ptr<const SecretStore>> load_secrets(
    const std::vector<std::string>& objects);

// The programs are an embedder that allows what QEMU's tools allow: formats are
// guessed where they are not stated, and prefixes followed, also in names that
// images have.  --restrict takes away all of that but prefixes in the caller's
// own names, and guessing the format of the image that the caller names.
ImageOpener::Policy tool_policy(
    std::shared_ptr<const SecretStore> secrets = nullptr);
// For the whole process, before anything else runs.
void restrict_images();

// An image as a command line names it.
struct ImageArgument {
  std::string name;    // with image_opts: "driver=luks,key-secret=sec0,..."
  std::string format;  // empty: guessed
  bool image_opts = false;
};

// Errors: what QEMU's tools say behind "Could not open '<name>': " is
// qemu_words() of the status.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const ImageOpener& opener, const ImageArgument& image,
    const OpenOptions& options);

// The options in the text after --image-opts; a first item without '=' is the
// value of `implied_name`.  Warns on standard error of options that are not
// written in full.
OptionMap parse_image_opts(const std::string& text,
                           absl::string_view implied_name = "file");

// Copies what of creation options names a secret: needed to open what was made.
void add_key_secrets(const OptionMap& creation, OptionMap* driver_options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_OPTS_H_

// What the programs have in common to name and open images: file names as QEMU
// reads them, "--image-opts", "--object secret,...", and what "--restrict"
// forbids.
//
// Thread safety: functions without state, except where they say otherwise.
#ifndef SPINDLE_TOOLS_IMAGE_OPTS_H_
#define SPINDLE_TOOLS_IMAGE_OPTS_H_

#include <memory>
#include <optional>
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

// False, and says so on standard error, for options and a format beside them.
bool states_format_once(const ImageArgument& image);

// Errors: what QEMU's tools say behind "Could not open '<name>': " is
// qemu_words() of the status.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_image(
    const ImageOpener& opener, const ImageArgument& image,
    const OpenOptions& options);

// What a person calls an image that was opened as `image`, whose file is called
// `filename` and whose format is `format`: the file, where that says all, else
// "json:{...}".
std::string display_name(const ImageArgument& image,
                         const std::string& filename,
                         const std::string& format);

// Warns the user of a raw image whose format was guessed, and which may be
// written to: `opened` is `image`.
void warn_if_guessed(const ImageArgument& image, const BlockDriver& opened);

// As open_image(); what is wrong is said on standard error, and the result
// null.  Calls warn_if_guessed().
std::shared_ptr<BlockDriver> open_or_complain(const ImageOpener& opener,
                                              const ImageArgument& image,
                                              const OpenOptions& options);

// The same with one of its snapshots in place of the disk, if `snapshot` states
// one ("-l").
std::shared_ptr<BlockDriver> open_snapshot_or_complain(
    const ImageOpener& opener, const ImageArgument& image, OpenOptions options,
    const std::optional<SnapshotChoice>& snapshot);

enum class ShortForms { kAccepted, kWarnedOf };
// The options in the text after --image-opts; a first item without '=' is the
// value of `implied_name`.
OptionMap parse_image_opts(const std::string& text,
                           ShortForms short_forms = ShortForms::kAccepted,
                           absl::string_view implied_name = "file");

// Copies what of creation options names a secret: needed to open what was made.
void add_key_secrets(const OptionMap& creation, OptionMap* driver_options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_OPTS_H_

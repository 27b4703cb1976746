// Names of images, as QEMU's tools read them: "disk.img", "file:disk.img",
// "json:{...}", and "name=value" options to any depth, with dots between the
// levels ("file.driver").
//
// Nothing here opens anything.  Whether a name is read this way, or is a file
// name and nothing else, is ImageOpener::Policy's to say.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_IMAGE_NAME_H_
#define SPINDLE_ENGINE_IMAGE_NAME_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"

namespace spindle {

// How much a name may mean.
enum class NameSyntax {
  kPlain,  // a file name, whatever it contains
  kQemu,   // prefixes and "json:" are followed
};

// The value of an option that is JSON's null ("backing": null).
inline constexpr absl::string_view kNullOption("\0", 1);

// What stands before the ':' if one comes before any '/'.
std::optional<absl::string_view> protocol_prefix(absl::string_view name);

bool is_json_name(absl::string_view name);
// The members of "json:{...}"; those of inner objects and lists are called
// "outer.inner" and "outer.0".
// Errors: kInvalidArgument.
absl::StatusOr<OptionMap> parse_json_name(absl::string_view name);

// How a file's name is written so that it means that file: "./x:y" for "x:y".
std::string unmistakable_filename(absl::string_view filename);

// Where `filename`, as it stands in the image `parent_filename`, points to: an
// absolute name is itself, a relative one starts at the image's directory.
std::string resolve_backing_filename(const std::string& parent_filename,
                                     const std::string& filename);
// The same where names may have prefixes: one that has is itself.
std::string resolve_backing_filename(NameSyntax syntax,
                                     const std::string& parent_filename,
                                     const std::string& filename);

// Moves what begins with "child." out of `options`, without that.
OptionMap take_child_options(absl::string_view child, OptionMap* options);

// What a person calls the image that `options` describe: a file's name where
// that says all, else "json:{...}".
std::string describe_options_as_name(const OptionMap& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IMAGE_NAME_H_

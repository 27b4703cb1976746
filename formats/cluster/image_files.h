// ImageFiles: the files that an image consists of: its own, the backing file,
// the external data file; opened and handled as one.
//
// Names that an image states are data: they are opened through
// OpenContext::open_child, so the embedder decides.
//
// Thread safety: a const ImageFiles, from any thread; the life cycle calls, one
// at a time.
#ifndef SPINDLE_FORMATS_CLUSTER_IMAGE_FILES_H_
#define SPINDLE_FORMATS_CLUSTER_IMAGE_FILES_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/format.h"

namespace spindle {

// What an image's header names besides the image's own file.
struct NamedFiles {
  std::string backing_filename = {};  // empty: none
  std::string backing_format = {};    // empty: not stated
  bool backing_format_can_be_stated = true;
  bool has_data_file = false;
  std::string data_filename = {};  // empty: not stated
};

// The option that names the data file, whatever the image says.
inline constexpr absl::string_view kDataFileOption = "data-file.filename";

struct ImageFiles {
  std::shared_ptr<BlockDriver> file;
  std::shared_ptr<BlockDriver> backing;    // null: none
  std::shared_ptr<BlockDriver> data_file;  // null: data are in `file`

  // Those that hold the image itself can all do that.
  bool can(Capability capability) const;

  // What reopen() does to each.
  struct Reopening {
    ReopenOptions file;
    ReopenOptions data_file;
    std::optional<ReopenOptions> backing;  // nothing: it stays as it is
  };
  // Takes what is for one of them out of `options`.
  Reopening take_reopening(ReopenOptions* options) const;
  // Of all or of none; the first error counts.  `before` undoes it.
  absl::Status reopen(const Reopening& options, const Reopening& before) const;
  absl::Status inactivate() const;
  absl::Status activate() const;
  // Of all, whatever happens.
  absl::Status close() const;
};

// Opens what the header of the image in `file` names.
// Errors: kPermissionDenied where nothing may be opened; kInvalidArgument for a
// data file that is missing, is given to an image that has none, or is the
// image's own file; those of open_child.
absl::StatusOr<ImageFiles> open_image_files(std::shared_ptr<BlockDriver> file,
                                            const NamedFiles& named,
                                            const OpenOptions& options,
                                            const OpenContext& context);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_IMAGE_FILES_H_

// Makes the empty files that images begin as.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_RAW_CREATE_FILE_H_
#define SPINDLE_FORMATS_RAW_CREATE_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/format.h"

namespace spindle {

enum class FilePreallocation {
  kOff,        // a hole
  kMetadata,   // of a format's own making: only for files of length 0
  kFallocate,  // space is reserved
  kFull,       // zeroes are written
};

struct FileCreateOptions {
  FilePreallocation preallocation = FilePreallocation::kOff;
  // Turn off copy-on-write of the file system (btrfs); where it has no such
  // thing, nothing happens.
  bool nocow = false;
  // Asks the file system (XFS) to allocate in pieces of this size, which keeps
  // images in few extents; 0: its own choice.
  uint32_t extent_size_hint_bytes = 1024 * 1024;
  // Of a wish that was stated, it is said that it cannot be granted.
  bool extent_size_hint_given = false;
};

// Errors: kInvalidArgument for an unknown name or value.
absl::StatusOr<FileCreateOptions> parse_file_create_options(
    const OptionMap& options);
std::vector<OptionHelp> file_create_options();

// Makes `filename` a regular file of `length_bytes` zeroes; one that was there
// is emptied first, under the locks that `qemu-img create` takes.  A file that
// was not there is removed again on an error; one that was there is left as it
// is if it cannot be locked, and empty if it could not be filled.  `log` may be
// empty.
absl::Status create_file(const std::string& filename, uint64_t length_bytes,
                         const FileCreateOptions& options,
                         const LogSink& log = {});

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_CREATE_FILE_H_

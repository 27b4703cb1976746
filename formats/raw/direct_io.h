// What a file opened with O_DIRECT asks of its users.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_RAW_DIRECT_IO_H_
#define SPINDLE_FORMATS_RAW_DIRECT_IO_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace spindle {

// Offsets, lengths and memory of direct transfers are multiples of this: the
// largest of what the file asks for, a power of two, at least 512.  (A file may
// ask less of addresses than of offsets, but asks the length of each segment to
// be a multiple of the offsets' alignment.)
//
// Asks the kernel (statx), or else tries reads of growing size, or else, where
// the file is too short to try, assumes 4096.
// Errors: kInvalidArgument if the file takes no direct transfers at all.
absl::StatusOr<uint32_t> find_direct_io_alignment(int fd,
                                                  absl::string_view filename);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_DIRECT_IO_H_

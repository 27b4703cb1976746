// Checking an image, as far as the format can be: whatever its tables name must
// lie in the file, and nothing in two places' use.
//
// The format counts no clusters, so nobody can tell what is lost from what was
// given up: there are no leaks, and nothing that could be repaired.
//
// Thread safety: a function without state.
#ifndef SPINDLE_FORMATS_QCOW_CHECK_H_
#define SPINDLE_FORMATS_QCOW_CHECK_H_

#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/image_check.h"

namespace spindle::qcow {

// Checks what is in the file.
// Errors: kUnimplemented if the options ask for a repair, kCancelled, those of
// read_header(); kResourceExhausted if there is not enough memory.
absl::StatusOr<CheckResult> check_image(ByteChannel* file,
                                        const CheckOptions& options);

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_CHECK_H_

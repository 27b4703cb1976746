// Options of "file" and "host_device", by QEMU's names: "locking", "aio",
// "aio-max-batch", "drop-cache", "pr-manager".
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_RAW_PROTOCOL_OPTIONS_H_
#define SPINDLE_FORMATS_RAW_PROTOCOL_OPTIONS_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"

namespace spindle {

// `options` without driver_options, and with what those mean.  How requests
// reach the kernel is the executor's business: every "aio" means that.
// Errors: kInvalidArgument for an option of another name, or a value that is
// none.
absl::StatusOr<OpenOptions> apply_protocol_options(absl::string_view protocol,
                                                   const OpenOptions& options);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_RAW_PROTOCOL_OPTIONS_H_

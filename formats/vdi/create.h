// Making a new VDI image, byte for byte as QEMU 7.2 does, but for its UUIDs.
//
// Thread safety: pure functions; one image is created by one thread.
#ifndef SPINDLE_FORMATS_VDI_CREATE_H_
#define SPINDLE_FORMATS_VDI_CREATE_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/vdi/header.h"

namespace spindle::vdi {

// The header that `options` ask for; no I/O.
// REQUIRES: options.size_bytes has a value.
// Errors: kInvalidArgument.
absl::StatusOr<Header> plan_create(const CreateOptions& options);

// Writes the image into `file`, which is empty and can grow, and flushes it.
// After an error the file is empty again, if it can become so.
absl::Status write_image(const Header& header,
                         const std::shared_ptr<BlockDriver>& file);

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_CREATE_H_

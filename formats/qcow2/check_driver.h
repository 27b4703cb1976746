// A driver for OpenOptions::for_check: it opens an image that is damaged, or
// that uses features which Spindle can count references of but not read, and
// does nothing but check and repair it.
#ifndef SPINDLE_FORMATS_QCOW2_CHECK_DRIVER_H_
#define SPINDLE_FORMATS_QCOW2_CHECK_DRIVER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"

namespace spindle::qcow2 {

// Opens the backing and the data file, and does not look into them: an image
// whose files are not all there is not sound.
// Errors: those of read_header_for_check() and of opening those files.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_for_check(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CHECK_DRIVER_H_

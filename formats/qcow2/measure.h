// How large the file of a new image becomes, reckoned as QEMU reckons it.
//
// Thread safety: pure functions; a source as a driver.
#ifndef SPINDLE_FORMATS_QCOW2_MEASURE_H_
#define SPINDLE_FORMATS_QCOW2_MEASURE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow2/create.h"

namespace spindle::qcow2 {

// For an image that create(options) makes, with what a guest sees of `source`
// (may be null).  More than is needed rather than less: metadata are counted as
// if all of the disk were allocated.  Options that change no length are not
// looked at.
// Errors: those of plan_create(), of the options that do.
absl::StatusOr<ImageFormat::Measurement> measure_image(
    const CreateOptions& options, BlockDriver* source);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_MEASURE_H_

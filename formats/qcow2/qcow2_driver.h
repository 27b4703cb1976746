// The qcow2 driver: map, pin, transfer, unpin.
//
// Versions 2 and 3; backing files; external data files; zero clusters;
// subclusters; clusters compressed by zlib or zstd.  What the parts do stands
// in their headers; this is where a driver call becomes one of theirs, inside
// the gate.
#ifndef SPINDLE_FORMATS_QCOW2_QCOW2_DRIVER_H_
#define SPINDLE_FORMATS_QCOW2_QCOW2_DRIVER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"

namespace spindle::qcow2 {

// Opens the image in `file`.  Options: runtime_options.h.  One that is marked
// dirty is repaired first if it is opened for writing.
// Errors: kInvalidArgument if it is not a qcow2 image or an option is wrong,
// kUnimplemented for a feature that is not supported (by name), kDataLoss for a
// damaged image, those of the file and of context.open_child.  After an error
// the file is as it was.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_qcow2(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_QCOW2_DRIVER_H_

// Making new qcow images, laid out as QEMU lays them out.
//
// Thread safety: functions without state.
#ifndef SPINDLE_FORMATS_QCOW_CREATE_H_
#define SPINDLE_FORMATS_QCOW_CREATE_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow/header.h"

namespace spindle::qcow {

std::vector<OptionHelp> create_options();

// The header of the image that `options` ask for.  No I/O.
// REQUIRES: options.size_bytes has a value.
// Errors: kInvalidArgument names the option, its value and the limit; kNotFound
// for a secret that is not there.
absl::StatusOr<Header> plan_create(const CreateOptions& options);

// Writes it into `file`, which is empty, durably.  After an error the file has
// no image.
absl::Status write_image(const Header& header,
                         const std::shared_ptr<BlockDriver>& file);

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_CREATE_H_

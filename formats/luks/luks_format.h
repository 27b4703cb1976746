// The image format "luks": a LUKS volume, version 1, in a file of its own.
#ifndef SPINDLE_FORMATS_LUKS_LUKS_FORMAT_H_
#define SPINDLE_FORMATS_LUKS_LUKS_FORMAT_H_

#include "engine/format.h"

namespace spindle::luks {

// Lives as long as the process.
const ImageFormat* luks_format();

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_LUKS_FORMAT_H_

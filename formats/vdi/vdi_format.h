// The vdi format, as the list of built-in drivers has it.
//
// Thread safety: any thread may call it.
#ifndef SPINDLE_FORMATS_VDI_VDI_FORMAT_H_
#define SPINDLE_FORMATS_VDI_VDI_FORMAT_H_

#include "engine/format.h"

namespace spindle::vdi {

// Lives as long as the process.
const ImageFormat* vdi_format();

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_VDI_FORMAT_H_

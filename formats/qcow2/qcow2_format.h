// The format "qcow2": recognised, opened, created.
//
// Thread safety: stateless; any thread may call anything.
#ifndef SPINDLE_FORMATS_QCOW2_QCOW2_FORMAT_H_
#define SPINDLE_FORMATS_QCOW2_QCOW2_FORMAT_H_

#include "engine/format.h"

namespace spindle::qcow2 {

// A static object.
const ImageFormat* qcow2_format();

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_QCOW2_FORMAT_H_

// The format "qcow", version 1: recognised, opened, created.
//
// Thread safety: stateless; any thread may call anything.
#ifndef SPINDLE_FORMATS_QCOW_QCOW_FORMAT_H_
#define SPINDLE_FORMATS_QCOW_QCOW_FORMAT_H_

#include "engine/format.h"

namespace spindle::qcow {

// A static object.
const ImageFormat* qcow_format();

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_QCOW_FORMAT_H_

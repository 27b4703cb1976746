// The filters that Spindle has, by QEMU's names.
//
// Thread safety: any thread may call it.
#ifndef SPINDLE_FORMATS_FILTERS_FILTERS_H_
#define SPINDLE_FORMATS_FILTERS_FILTERS_H_

#include <vector>

#include "engine/format.h"

namespace spindle {

// blkdebug, compress, copy-on-read, null-aio, null-co, throttle.
std::vector<const DriverFilter*> builtin_filters();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_FILTERS_H_

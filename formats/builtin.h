// The storage protocols, image formats and filters that Spindle has.
//
// Thread safety: any thread may call it; the lists never change.
#ifndef SPINDLE_FORMATS_BUILTIN_H_
#define SPINDLE_FORMATS_BUILTIN_H_

#include "engine/format.h"

namespace spindle {

// Protocols: host_device, file.  Formats: raw and the others, in the order in
// which messages name them.  Filters: see formats/filters/filters.h.
const DriverRegistry& builtin_drivers();

}  // namespace spindle

#endif  // SPINDLE_FORMATS_BUILTIN_H_

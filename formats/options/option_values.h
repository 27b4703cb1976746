// Moved: engine/option_values.h.
#ifndef SPINDLE_FORMATS_OPTIONS_OPTION_VALUES_H_
#define SPINDLE_FORMATS_OPTIONS_OPTION_VALUES_H_

#include "engine/option_values.h"  // IWYU pragma: export

#endif  // SPINDLE_FORMATS_OPTIONS_OPTION_VALUES_H_

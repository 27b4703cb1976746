// The options that "open" and the program's own command line have in common.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_IO_OPEN_FLAGS_H_
#define SPINDLE_TOOLS_IO_OPEN_FLAGS_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/cache_mode.h"
#include "engine/format.h"
#include "tools/io_image.h"

namespace spindle {

// Enters -r, -s, -C, -n, -k, -U, -i, -t or -d.  Returns what is wrong with
// `value`; empty: nothing.
std::string apply_open_flag(int option, const char* value, IoTarget* target);

// Adds what "name=value,..." says; it counts more than what is there.  False,
// and a message, if the list is none.
bool add_options(absl::string_view list, OptionMap* options);

// QEMU's names, old ones too.
absl::StatusOr<CacheMode> parse_io_cache_mode(absl::string_view name);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_OPEN_FLAGS_H_

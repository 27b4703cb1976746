// Options written as a JSON object, as QEMU's tools take them: strings may also
// stand in single quotes.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_JSON_OPTIONS_H_
#define SPINDLE_ENGINE_JSON_OPTIONS_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"

namespace spindle {

// The members of the object `text`, flat: those of inner objects and lists are
// called "outer.inner" and "outer.0"; empty ones vanish.  true and false become
// "on" and "off", null becomes kNullOption; numbers are kept as they are
// written.  Of a member that is there twice in two spellings (nested, and with
// a dot) the nested one counts.
// Errors: kInvalidArgument, in QEMU's words.
absl::StatusOr<OptionMap> parse_json_options(absl::string_view text);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JSON_OPTIONS_H_

// What to do about an error of which QEMU's message only says that it is one.
//
// Thread safety: pure functions; hints_are_wanted() reads the environment.
#ifndef SPINDLE_TOOLS_HINTS_H_
#define SPINDLE_TOOLS_HINTS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace spindle {

// A line without its end; empty if there is nothing to say about `message`.
// `program` is what the user calls spindle-img by.
std::string hint_for(absl::string_view message, absl::string_view program);

// Messages are QEMU's to the letter where programs may read them: hints are for
// people, at a terminal.  SPINDLE_HINTS=always or never in the environment says
// otherwise.
bool hints_are_wanted();

}  // namespace spindle

#endif  // SPINDLE_TOOLS_HINTS_H_

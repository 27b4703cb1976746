// Requests of images for other files: what to say about them, and which names
// are refused.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_CHILD_REQUEST_H_
#define SPINDLE_ENGINE_CHILD_REQUEST_H_

#include <string>

#include "absl/status/status.h"
#include "engine/format.h"
#include "engine/image_name.h"

namespace spindle {

// "backing file 'b.img' (number 2 in the chain) of 'a.qcow2'"
std::string describe(const ChildRequest& request);

// Where prefixes are not followed, a name that has a known one is refused: who
// wrote it did not mean a file of that name.
absl::Status check_image_name(NameSyntax syntax, const ChildRequest& request);
// OK unless `filename` has such a prefix.
bool has_known_prefix(absl::string_view filename);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_CHILD_REQUEST_H_

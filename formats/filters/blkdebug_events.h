// The events of blkdebug, by QEMU's names, and what raises them here.
//
// A purpose of an access (access.h) raises one event or several; a rule for an
// event of QEMU's that no purpose raises waits in vain, as it does in QEMU for
// events of other formats.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_FILTERS_BLKDEBUG_EVENTS_H_
#define SPINDLE_FORMATS_FILTERS_BLKDEBUG_EVENTS_H_

#include <optional>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/access.h"

namespace spindle {

// An index into the list of names.
enum class BlkdebugEvent : int {};

// Nothing if there is no event of that name.
std::optional<BlkdebugEvent> find_blkdebug_event(absl::string_view name);
// REQUIRES: such an event exists.
BlkdebugEvent blkdebug_event(absl::string_view name);
absl::string_view blkdebug_event_name(BlkdebugEvent event);
int blkdebug_event_count();

// In the order in which they are raised.
const std::vector<BlkdebugEvent>& blkdebug_events_of(Purpose purpose);

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_BLKDEBUG_EVENTS_H_

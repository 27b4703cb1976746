// The table of internal snapshots that `snapshot -l` and `info` print.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_SNAPSHOT_TEXT_H_
#define SPINDLE_TOOLS_SNAPSHOT_TEXT_H_

#include <string>

#include "absl/types/span.h"
#include "engine/snapshot.h"

namespace spindle {

// A heading and a line for each; empty if there are none.
std::string snapshot_table_text(absl::Span<const SnapshotInfo> snapshots);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_SNAPSHOT_TEXT_H_

// "-l": which snapshot a command shall read.
//
// Thread safety: pure functions.
#ifndef SPINDLE_TOOLS_SNAPSHOT_CHOICE_H_
#define SPINDLE_TOOLS_SNAPSHOT_CHOICE_H_

#include <string>

#include "absl/strings/match.h"
#include "engine/format.h"
#include "engine/option_list.h"

namespace spindle {

// "snapshot.id=1,snapshot.name=a", or an id or a name.
inline SnapshotChoice parse_snapshot_choice(const std::string& text) {
  SnapshotChoice choice;
  if (!absl::StartsWith(text, "snapshot.")) {
    choice.id_or_name = text;
    return choice;
  }
  for (const OptionItem& item : split_option_list(text)) {
    if (item.name == "snapshot.id") choice.id = item.value;
    if (item.name == "snapshot.name") choice.name = item.value;
  }
  return choice;
}

}  // namespace spindle

#endif  // SPINDLE_TOOLS_SNAPSHOT_CHOICE_H_

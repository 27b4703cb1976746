#include "tools/snapshot_text.h"

#include <cinttypes>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "tools/cli_text.h"

namespace spindle {
namespace {

std::string vm_clock_text(uint64_t nanoseconds) {
  const uint64_t seconds = nanoseconds / 1'000'000'000;
  return absl::StrFormat("%02d:%02d:%02d.%03d", seconds / 3600,
                         seconds / 60 % 60, seconds % 60,
                         nanoseconds / 1'000'000 % 1000);
}

std::string line_text(const SnapshotInfo& snapshot) {
  const std::string date = absl::FormatTime(
      "%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(snapshot.date_seconds),
      absl::LocalTimeZone());
  return absl::StrFormat("%-9s %-16s %8s%20s%13s%11s\n", snapshot.id,
                         snapshot.name, human_size(snapshot.vm_state_bytes),
                         date, vm_clock_text(snapshot.vm_clock_nanoseconds),
                         snapshot.instruction_count.has_value()
                             ? absl::StrCat(*snapshot.instruction_count)
                             : "");
}

}  // namespace

std::string snapshot_table_text(absl::Span<const SnapshotInfo> snapshots) {
  if (snapshots.empty()) return "";
  std::string text =
      absl::StrFormat("Snapshot list:\n%-9s %-16s %8s%20s%13s%11s\n", "ID",
                      "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
  for (const SnapshotInfo& snapshot : snapshots) text += line_text(snapshot);
  return text;
}

}  // namespace spindle

// Internal snapshots: what is known of one, and how one is named.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_SNAPSHOT_H_
#define SPINDLE_ENGINE_SNAPSHOT_H_

#include <cstdint>
#include <optional>
#include <string>

namespace spindle {

struct SnapshotInfo {
  // Unique within the image; empty when one is made: the format chooses.
  std::string id;
  std::string name;
  // What of the vmstate area belongs to it; 0: a snapshot of the disk alone.
  uint64_t vm_state_bytes = 0;
  // When it was made: seconds and nanoseconds since the epoch.
  uint32_t date_seconds = 0;
  uint32_t date_nanoseconds = 0;
  // How long the guest had run.
  uint64_t vm_clock_nanoseconds = 0;
  // Instructions that the guest had executed, where that was recorded.
  std::optional<uint64_t> instruction_count;
  // The length of the disk then; may differ from the image's.
  uint64_t disk_size_bytes = 0;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SNAPSHOT_H_

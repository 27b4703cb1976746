#include "formats/qcow2/snapshot_view.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"

namespace spindle::qcow2 {
namespace {

bool is_meant(const SnapshotInfo& info, const SnapshotChoice& choice) {
  return (choice.id.empty() || info.id == choice.id) &&
         (choice.name.empty() || info.name == choice.name);
}

// The first that has all that was stated; an id goes before a name.
const Snapshot* find(const std::vector<Snapshot>& snapshots,
                     const SnapshotChoice& choice) {
  std::vector<SnapshotChoice> attempts = {choice};
  if (!choice.id_or_name.empty()) {
    attempts = {{.id = choice.id_or_name}, {.name = choice.id_or_name}};
  }
  for (const SnapshotChoice& attempt : attempts) {
    const auto found = std::find_if(snapshots.begin(), snapshots.end(),
                                    [&](const Snapshot& snapshot) {
                                      return is_meant(snapshot.info, attempt);
                                    });
    if (found != snapshots.end()) return &*found;
  }
  return nullptr;
}

absl::Status check_disk(const Snapshot& snapshot, const Header& header) {
  const uint64_t size = snapshot.info.disk_size_bytes;
  if (size > kMaxSizeBytes) {
    return absl::DataLossError(
        absl::StrCat("the disk of snapshot '", snapshot.info.id, "' has ", size,
                     " bytes: the limit is ", kMaxSizeBytes));
  }
  const uint64_t needed =
      divide_round_up(size, header.l1_entry_coverage_bytes());
  if (snapshot.l1_entry_count >= needed) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("the L1 table of snapshot '", snapshot.info.id, "' has ",
                   snapshot.l1_entry_count, " entries: a disk of ", size,
                   " bytes needs ", needed));
}

}  // namespace

absl::Status show_snapshot(BlockDriver* file, const SnapshotChoice& choice,
                           Header* header) {
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  const absl::StatusOr<std::vector<Snapshot>> snapshots =
      read_snapshot_table(&channel, *header);
  if (!snapshots.ok()) return snapshots.status();
  const Snapshot* const snapshot = find(*snapshots, choice);
  if (snapshot == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        "the image has no snapshot '", choice.id, choice.id_or_name, "'",
        choice.name.empty() ? ""
                            : absl::StrCat(" of name '", choice.name, "'")));
  }
  absl::Status status = check_snapshot_l1(
      *snapshot, header->cluster_size_bytes(), channel.length_bytes());
  if (status.ok()) status = check_disk(*snapshot, *header);
  if (!status.ok()) return status;
  header->l1_table_offset = snapshot->l1_table_offset;
  header->l1_entry_count = snapshot->l1_entry_count;
  header->size_bytes = snapshot->info.disk_size_bytes;
  return status;
}

}  // namespace spindle::qcow2

#include "formats/qcow/flush_rounds.h"

#include <cstdint>

#include "engine/access.h"
#include "engine/block_driver.h"
#include "formats/cluster/mapping_writes.h"

namespace spindle::qcow {

absl::Status FlushRounds::flush() {
  return sharing_.flush([this] { return run_round(); });
}

absl::Status FlushRounds::write_back_if_crowded() {
  if (!parts_.l2_tables->wants_write_back()) return absl::OkStatus();
  return sharing_.write_back(parts_.l2_tables->is_overfull(),
                             [this] { return run_round(); });
}

absl::Status FlushRounds::run_round() {
  // The order matters: a table that the L1 entries name may have no slice here,
  // but each slice's table is named by an L1 entry that is here or on disk.
  Snapshot snapshot;
  parts_.l2_tables->take_dirty(&snapshot.l2);
  snapshot.l1 = parts_.l1->take_dirty();
  if (snapshot.l2.empty() && snapshot.l1.empty()) return parts_.file->flush();
  absl::Status status = write_out(snapshot);
  if (!status.ok()) {
    parts_.l1->restore(snapshot.l1);
    parts_.l2_tables->restore(&snapshot.l2);
  }
  return status;
}

absl::Status FlushRounds::write_out(const Snapshot& snapshot) {
  absl::Status status;
  const uint64_t end = parts_.allocator->published_end_bytes();
  if (parts_.file->length_bytes() < end)
    status = parts_.file->set_length(end, SetLengthMode::kGrowOnly);
  if (status.ok() && maps_new_clusters(snapshot.l2, snapshot.l1))
    status = parts_.file->flush();
  if (status.ok()) {
    status = write_table_pieces(parts_.file, Purpose::kL2Update, snapshot.l2);
  }
  if (status.ok())
    status = write_l1_pieces(parts_.file, *parts_.l1, snapshot.l1);
  return status.ok() ? parts_.file->flush() : status;
}

}  // namespace spindle::qcow

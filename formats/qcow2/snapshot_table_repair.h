// The snapshot table in a check: what is wrong with it, and a new one where a
// repair needs one.
//
// As in QEMU, what a repair cannot keep goes: snapshots beyond the limits of
// the table, extra data beyond the limit of an entry.  What version 3 demands
// and an entry lacks is added.
//
// Thread safety: one thread.
#ifndef SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_REPAIR_H_
#define SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_REPAIR_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/snapshot_table.h"

namespace spindle::qcow2 {

class SnapshotTableRepair {
 public:
  // `context` must outlive this.
  explicit SnapshotTableRepair(CheckContext* context) : context_(context) {}

  // Reads the whole table.  With options.fix_errors the header's number of
  // snapshots becomes one that the limits allow, durably: before the clusters
  // of those that are gone are given up.
  // Errors: EINVAL if the table cannot stand where the header says, EFBIG if it
  // breaks a limit and is not to be repaired, kDataLoss, those of the file.
  absl::Status read();

  // Each stays until the table is written anew.
  uint64_t corruptions() const { return corruptions_; }
  // The L1 entries of all snapshots, for progress.
  uint64_t l1_entry_count() const { return l1_entry_count_; }

  // How long the new table is; at most kMaxSnapshotTableBytes.
  // Errors: EFBIG if it breaks the limit, kResourceExhausted if an entry does.
  absl::StatusOr<uint64_t> new_length_bytes() const;
  // Writes it to `offset`, not durably.
  absl::Status write_new_table(uint64_t offset) const;
  // One write to the header, durably.  REQUIRES: the table at `offset` and its
  // refcounts are durable.
  absl::Status switch_header(uint64_t offset);

 private:
  using Sink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t> bytes)>;

  absl::Status check_place() const;
  // Hands the new table over in pieces.
  absl::Status serialize(Sink sink) const;
  absl::Status read_entries();
  // Without the last `count` ones.
  absl::Status drop_snapshots(uint32_t count);

  CheckContext* const context_;
  uint64_t corruptions_ = 0;
  uint64_t l1_entry_count_ = 0;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SNAPSHOT_TABLE_REPAIR_H_

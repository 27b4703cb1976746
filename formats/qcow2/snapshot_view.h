// A snapshot shown in the disk's place, read-only (OpenOptions::snapshot).
//
// qcow2 specification, "Snapshots": a snapshot is another L1 table, and the
// length of its disk.
//
// Thread safety: a function without state.
#ifndef SPINDLE_FORMATS_QCOW2_SNAPSHOT_VIEW_H_
#define SPINDLE_FORMATS_QCOW2_SNAPSHOT_VIEW_H_

#include "absl/status/status.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

// Makes `header`, of the image in `file`, name the L1 table and the disk of the
// snapshot that `choice` names.
// Errors: kNotFound, kDataLoss for a damaged snapshot; `header` is as it was.
absl::Status show_snapshot(BlockDriver* file, const SnapshotChoice& choice,
                           Header* header);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SNAPSHOT_VIEW_H_

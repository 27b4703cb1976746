// Snapshots: internal snapshots of an open image.
//
// qcow2 specification, "Snapshots".  A snapshot is a copy of the L1 table; the
// L2 tables and clusters that it names are shared, and their refcounts say how
// often.  What is shared is not COPIED, so a write to it goes elsewhere.
//
// Order (rule 2): new references are durable before anything names them; the
// snapshot table is switched by one write within the header's first sector,
// durable; only then are old references given up.  After a crash at any point
// there are at worst clusters with too high a refcount, and entries that are
// not COPIED though nothing shares their cluster, or COPIED though the snapshot
// that was to share it does not exist: `check` mends both.
//
// apply() of a disk of another length writes the L1 table and then the length;
// after a crash between them the disk is the snapshot's, cut off or with
// nothing of its own behind it.
//
// create(), apply() and remove() stop all requests of the image: for a walk
// over its L2 tables and the refcounts of what they name (reading those that
// are not cached), and for a few writes and syncs.  A walk that requests could
// pass would have to tell old mappings from new ones.
//
// Thread safety: list() inside the image's gate; the others while it is closed.
#ifndef SPINDLE_FORMATS_QCOW2_SNAPSHOTS_H_
#define SPINDLE_FORMATS_QCOW2_SNAPSHOTS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/snapshot.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/snapshot_table.h"
#include "formats/qcow2/table_references.h"

namespace spindle::qcow2 {

class Snapshots {
 public:
  // Both must outlive this.
  Snapshots(Image* image, TableReferences* references);

  // Reads the snapshot table; before anything is written.
  absl::Status prepare_for_writing() { return load(); }
  // Enters where the tables lie, for the overlap check; when the image has
  // entered its own.  Errors leave none of them entered.  A snapshot whose L1
  // table cannot be right is left alone: it can be neither applied nor removed.
  absl::Status enter_extents();

  // REQUIRES: prepared for writing.
  size_t count() const { return snapshots_.size(); }

  absl::StatusOr<std::vector<SnapshotInfo>> list();
  // Writes the table anew, with all that is known of each snapshot; while the
  // gate is closed.
  absl::Status rewrite_table() { return switch_to(snapshots_); }
  absl::StatusOr<SnapshotInfo> create(const SnapshotInfo& wanted);
  // `snapshot`: an id, or else a name.
  absl::Status apply(absl::string_view snapshot);
  absl::Status remove(absl::string_view snapshot);

 private:
  absl::Status load();
  absl::Status check_l1(const Snapshot& snapshot) const;
  absl::StatusOr<size_t> find(absl::string_view snapshot) const;
  std::string unused_id() const;
  ByteRange l1_extent(const Snapshot& snapshot) const;

  // Makes the image have `wanted`; on error it has what it had.
  absl::Status switch_to(std::vector<Snapshot> wanted);
  absl::Status write_table(absl::Span<const uint8_t> bytes, ByteRange* place);
  void forget_vmstate();
  absl::Status make_room_for(const Snapshot& snapshot);
  // Makes the disk `new_entries`, and its length `size_bytes`; on error it is
  // what it was.
  absl::Status switch_disk(const TableReferences::L1Entries& old_entries,
                           const TableReferences::L1Entries& new_entries,
                           uint64_t size_bytes);
  absl::Status switch_header(ByteRange place, size_t count);

  Image& image_;
  TableReferences& references_;
  bool loaded_ = false;
  bool entered_extents_ = false;
  std::vector<Snapshot> snapshots_;
  // Where the table lies: whole clusters.
  ByteRange table_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SNAPSHOTS_H_

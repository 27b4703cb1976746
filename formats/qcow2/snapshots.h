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

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/snapshot.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/snapshot_table.h"

namespace spindle::qcow2 {

class Snapshots {
 public:
  // `image` must outlive this.
  explicit Snapshots(Image* image);

  // Reads and checks the snapshot table; before anything is written.
  absl::Status prepare_for_writing();
  // Enters where the tables lie, for the overlap check; when the image has
  // entered its own.  Errors leave none of them entered.
  absl::Status enter_extents();

  absl::StatusOr<std::vector<SnapshotInfo>> list();
  // Writes the table anew, with all that is known of each snapshot; while the
  // gate is closed.
  absl::Status rewrite_table() { return switch_to(snapshots_); }
  absl::StatusOr<SnapshotInfo> create(const SnapshotInfo& wanted);
  // `snapshot`: an id, or else a name.
  absl::Status apply(absl::string_view snapshot);
  absl::Status remove(absl::string_view snapshot);

 private:
  // Host-endian entries of an L1 table, COPIED and reserved bits as they are.
  using L1Entries = std::vector<uint64_t>;
  using Visit = absl::FunctionRef<absl::Status(HostClusters clusters)>;

  absl::Status load();
  absl::Status check_tables() const;
  absl::StatusOr<size_t> find(absl::string_view snapshot) const;
  std::string unused_id() const;
  ByteRange l1_extent(const Snapshot& snapshot) const;

  L1Entries active_l1() const;
  absl::StatusOr<L1Entries> read_l1(const Snapshot& snapshot);

  // Calls `visit` for every reference that the tables under `entries` hold, in
  // runs: first what an L2 table names, then the table.
  absl::Status for_each_reference(const L1Entries& entries, Visit visit);
  absl::Status visit_l2_table(HostOffset table, Visit visit);
  // All or nothing.
  absl::Status add_references(const L1Entries& entries);
  // REQUIRES: nothing durable names them through `entries`.
  absl::Status drop_references(const L1Entries& entries);
  // Makes COPIED say whether a refcount is one, in the active tables.
  absl::Status update_copied_flags();
  absl::Status update_copied_flags_of(uint64_t l1_index);
  // Lowers the refcounts of what was dropped, and then sets the flags.
  absl::Status settle_references();

  absl::Status write_l1(const L1Entries& entries, HostOffset where);
  // Makes the image have `wanted`; on error it has what it had.
  absl::Status switch_to(std::vector<Snapshot> wanted);
  absl::Status write_table(absl::Span<const uint8_t> bytes, ByteRange* place);
  absl::Status switch_header(ByteRange place, size_t count);
  absl::Status write_header_fields(uint64_t offset, size_t count);
  absl::Status overwrite_active_l1(const L1Entries& old_entries,
                                   const L1Entries& new_entries);
  void remove_extents(const L1Entries& entries);
  absl::Status add_extents(const L1Entries& entries);
  // Their L2 tables are not cached any more.
  void forget_tables(const L1Entries& entries);

  Image& image_;
  bool loaded_ = false;
  bool entered_extents_ = false;
  std::vector<Snapshot> snapshots_;
  // Where the table lies: whole clusters.
  ByteRange table_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_SNAPSHOTS_H_

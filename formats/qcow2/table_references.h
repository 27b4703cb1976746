// TableReferences: what L1 tables and the L2 tables under them refer to,
// counted and given up as a whole.
//
// qcow2 specification, "L1 and L2 tables" and "Refcounts".  For operations that
// add or take away whole L1 tables or parts of them (snapshots, resize): the
// gate is closed, and nothing is dirty (FlushRounds::settle) when they begin.
//
// Thread safety: one thread at a time, while the image's gate is closed.
#ifndef SPINDLE_FORMATS_QCOW2_TABLE_REFERENCES_H_
#define SPINDLE_FORMATS_QCOW2_TABLE_REFERENCES_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

class TableReferences {
 public:
  // Host-endian entries of an L1 table, COPIED and reserved bits as they are.
  using L1Entries = std::vector<uint64_t>;

  // `image` must outlive this.
  explicit TableReferences(Image* image) : image_(*image) {}

  L1Entries active_l1() const;
  // REQUIRES: the table's size was compared with its limit.
  absl::StatusOr<L1Entries> read_l1(HostOffset where, uint64_t entry_count);
  absl::Status write_l1(Purpose purpose, const L1Entries& entries,
                        HostOffset where);
  // Makes the entries of the active table from `first` on `new_entries` on the
  // disk, durably; in memory they are `old_entries` still, and on the disk
  // after an error (else the image is marked corrupt).
  absl::Status overwrite_active_l1(uint64_t first, const L1Entries& old_entries,
                                   const L1Entries& new_entries);

  // Adds a reference to all that the tables under `entries` name, and to those
  // tables.  All or nothing.
  absl::Status add_references(const L1Entries& entries);
  // REQUIRES: nothing durable names them through `entries`.
  absl::Status drop_references(const L1Entries& entries);
  // Makes COPIED say whether a refcount is one, in the active tables.
  absl::Status update_copied_flags();
  // Lowers the refcounts of what was dropped, and then sets the flags.
  absl::Status settle_references();

  // Enters and removes the L2 tables that `entries` name, for the overlap
  // check.
  absl::Status add_extents(const L1Entries& entries);
  void remove_extents(const L1Entries& entries);
  // Their L2 tables are not cached any more.
  void forget_tables(const L1Entries& entries);

  // Clears the entries of the active table from `first` on, durably, and gives
  // up what they named.  After an error some of that may be leaked.
  absl::Status drop_active_tables(uint64_t first);

 private:
  using Visit = absl::FunctionRef<absl::Status(HostClusters clusters)>;

  // Calls `visit` for every reference that the tables under `entries` hold, in
  // runs: first what an L2 table names, then the table.
  absl::Status for_each_reference(const L1Entries& entries, Visit visit);
  absl::Status visit_l2_table(HostOffset table, Visit visit);
  absl::Status update_copied_flags_of(uint64_t l1_index);

  Image& image_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_TABLE_REFERENCES_H_

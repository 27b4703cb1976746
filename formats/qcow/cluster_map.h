// ClusterMap: from guest offsets to places in the file, and back into the
// tables.
//
// Nothing that a table names is ever freed, so what lookup() finds stays where
// it is without being pinned, and the data transfer that follows goes without
// any lock.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW_CLUSTER_MAP_H_
#define SPINDLE_FORMATS_QCOW_CLUSTER_MAP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "formats/cluster/address.h"
#include "formats/cluster/corruption.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow/address.h"
#include "formats/qcow/allocator.h"
#include "formats/qcow/table_entry.h"

namespace spindle::qcow {

// A stretch of guest bytes that are all of one kind and, if they are kNormal,
// follow each other in the file.
struct MappedRun {
  ClusterKind kind = ClusterKind::kUnallocated;
  // Of the first cluster.  For kCompressed it is the only one.
  L2Entry entry;
  // Where the first byte lives (kNormal).
  HostOffset host;
  uint64_t bytes = 0;
  // It lies beyond the end of the file, where nothing valid can.
  bool is_beyond_end = false;
};

class ClusterMap {
 public:
  // All must outlive this.
  struct Parts {
    const Geometry* geometry;
    L1Table* l1;
    TableCache* l2_tables;
    Allocator* allocator;
    Corruption* corruption;
    ByteChannel* file;
    MetadataExtents* extents;
  };

  explicit ClusterMap(Parts parts)
      : parts_(parts), geometry_(*parts.geometry) {}

  // Describes the longest run from `guest` on, `max_bytes` at most, that one
  // slice of an L2 table shows.  What lies beyond the end of the file reads as
  // zeroes; if the image may be written to, it is reported as a corruption: the
  // next cluster might get its place.
  // REQUIRES: the range lies within the disk, max_bytes > 0.
  // Errors: kDataLoss for a damaged entry, those of the file.
  absl::Status lookup(GuestOffset guest, uint64_t max_bytes, MappedRun* run);
  // The same without I/O: false if a slice would have to be read, on error, and
  // beyond the end of the file.
  bool try_lookup(GuestOffset guest, uint64_t max_bytes, MappedRun* run);

  // The slice that holds the entry of `guest`, to be changed: creates the L2
  // table if there is none.
  absl::StatusOr<SliceRef> slice_for_update(GuestOffset guest);

  // OK if `entry`, or an L1 entry that names `table`, may stand in this image's
  // tables.
  absl::Status check_entry(GuestOffset guest, L2Entry entry) const;
  absl::Status check_table(uint64_t l1_index, HostOffset table) const;

 private:
  // Where the file has an end, now: who only reads may see others write to it.
  bool is_beyond_end(ByteRange range) const;
  absl::StatusOr<HostOffset> slice_host(GuestOffset guest) const;
  absl::Status describe(GuestOffset guest, uint64_t max_bytes, Slice* slice,
                        MappedRun* run);
  void describe_missing_table(GuestOffset guest, uint64_t max_bytes,
                              MappedRun* run) const;
  absl::Status make_table(uint64_t l1_index);
  absl::StatusOr<ByteRange> place_table();

  const Parts parts_;
  const Geometry& geometry_;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_CLUSTER_MAP_H_

// ClusterMap: from guest offsets to host clusters, and back into the tables.
//
// lookup() finds where a guest range lives and pins it there, so that the data
// transfer that follows can go without any lock.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_CLUSTER_MAP_H_
#define SPINDLE_FORMATS_QCOW2_CLUSTER_MAP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/cluster/corruption.h"
#include "formats/cluster/in_flight.h"
#include "formats/cluster/l1_table.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {

// A stretch of guest bytes that are all of one kind and, where they have a host
// offset, follow each other in the file.
struct MappedRun {
  ClusterKind kind = ClusterKind::kUnallocated;
  // Of the first cluster.  For kCompressed it is the only one.
  L2Entry entry;
  // A guest's write may go to `host` as it is.
  bool writable_in_place = false;
  // Where the first byte lives, or would (entry.has_host()).
  HostOffset host;
  uint64_t bytes = 0;
  // Keeps the host clusters from being reused (kNormal, kCompressed).
  InFlight::Pin pin;
};

class ClusterMap {
 public:
  // All must outlive this.
  struct Parts {
    const Geometry* geometry;
    L1Table* l1;
    TableCache* l2_tables;
    Allocator* allocator;
    InFlight* in_flight;
    Corruption* corruption;
    ByteChannel* file;
    MetadataExtents* extents;
    PendingFrees* pending;
  };

  explicit ClusterMap(Parts parts)
      : parts_(parts), geometry_(*parts.geometry) {}

  // Describes and pins the longest run from `guest` on, `max_bytes` at most,
  // that one slice of an L2 table shows.
  // REQUIRES: the range lies within the L1 table, max_bytes > 0.
  // Errors: kDataLoss for a damaged entry (and the image is marked), those of
  // the file.
  absl::Status lookup(GuestOffset guest, uint64_t max_bytes, MappedRun* run);
  // The same without I/O: false if a slice would have to be read, or on error.
  bool try_lookup(GuestOffset guest, uint64_t max_bytes, MappedRun* run);

  // The slice that holds the entry of `guest`, to be changed: creates the L2
  // table if there is none, and copies one that a snapshot shares.
  absl::StatusOr<SliceRef> slice_for_update(GuestOffset guest);
  // The same, but an empty reference if there is no L2 table.
  absl::StatusOr<SliceRef> slice_for_update_if_present(GuestOffset guest);

  // The index of guest's entry within its slice, and how many guest bytes from
  // `guest` on the slice covers.
  uint64_t index_in_slice(GuestOffset guest) const {
    return geometry_.l2_index(guest) % geometry_.l2_entries_per_slice();
  }
  uint64_t bytes_left_in_slice(GuestOffset guest) const {
    return geometry_.guest_bytes_per_slice() -
           guest.bytes % geometry_.guest_bytes_per_slice();
  }

  // OK if `entry` may stand in this image's tables: whoever frees what it names
  // asks first.
  absl::Status check_entry(GuestOffset guest, L2Entry entry) const;

 private:
  // The same for whoever reads: compressed data beyond the end of the file are
  // zeroes, which are no compressed data.
  absl::Status check_form(GuestOffset guest, L2Entry entry) const;
  // The same, as far as an external data file asks for it.
  absl::Status check_external_entry(GuestOffset guest, L2Entry entry) const;
  // What lies beyond the end of the file reads as zeroes: who looks up finds no
  // table there, who wants to change one finds damage.  (An image that has such
  // a table is not opened for writing.)
  enum class TableUse { kLookUp, kChange };
  // Where the slice of the L2 table is; 0: there is no table.
  absl::StatusOr<HostOffset> slice_host(GuestOffset guest, TableUse use) const;
  void describe_missing_table(GuestOffset guest, uint64_t max_bytes,
                              MappedRun* run) const;
  absl::Status describe(GuestOffset guest, uint64_t max_bytes, Slice* slice,
                        MappedRun* run);
  // The same for an image with subclusters.
  absl::Status describe_subclusters(GuestOffset guest, uint64_t max_bytes,
                                    Slice* slice, MappedRun* run);
  void pin(uint64_t cluster_count, MappedRun* run) const;
  absl::StatusOr<SliceRef> slice_if_present(GuestOffset guest);
  absl::Status check_table(uint64_t l1_index, HostOffset table) const;
  absl::Status make_own_table(uint64_t l1_index);
  absl::StatusOr<Allocator::Allocation> allocate_table(uint64_t l1_index,
                                                       HostOffset old);
  // Gives `table`, just allocated, its content: zeroes, or that of `old`.
  absl::Status fill_table(const Allocator::Allocation& table, ByteRange range,
                          HostOffset old);

  const Parts parts_;
  const Geometry& geometry_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CLUSTER_MAP_H_

// DataClusters: where the clusters of guest data live: among the metadata in
// the image's own file, or in an external data file.
//
// qcow2 specification, "Incompatible features", bit 2, and "Autoclear
// features", bit 1.  In an external file each cluster stands at the guest's own
// offset: nothing is allocated there, counted, or moved.  A raw data file reads
// as the guest's disk without the tables, so what the tables call zero must be
// zero there, too.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_DATA_CLUSTERS_H_
#define SPINDLE_FORMATS_QCOW2_DATA_CLUSTERS_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/byte_channel.h"
#include "engine/range_tracker.h"
#include "engine/sector.h"
#include "formats/cluster/metadata_extents.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/allocator.h"

namespace spindle::qcow2 {

class DataClusters {
 public:
  // All must outlive this.
  struct Parts {
    const Geometry* geometry;
    ByteChannel* file;
    ByteChannel* external;  // null: data live in `file`
    Allocator* allocator;
    MetadataExtents* extents;
  };
  struct Options {
    bool raw = false;
    bool pass_discard_through = true;
  };

  DataClusters(Parts parts, Options options);

  ByteChannel& channel() const {
    return is_external() ? *parts_.external : *parts_.file;
  }
  bool is_external() const { return parts_.external != nullptr; }
  bool is_raw() const { return raw_requests_ != nullptr; }

  // OK if guest data may be written to `host`, which a table names.
  absl::Status check_place(ByteRange host) const;

  // Clusters for `count` guest clusters from `guest` on, or for the first of
  // them, in one piece; right behind what was written last, at `next_cluster`,
  // if that is not 0 and there is room.  Errors: as Allocator::allocate().
  absl::StatusOr<Allocator::Allocation> allocate(GuestOffset guest,
                                                 uint64_t count,
                                                 uint64_t next_cluster) const;
  // What became of them.
  void note_published(HostClusters clusters) const;
  void free_unpublished(HostClusters clusters) const;

  // For a whole request of a guest, from before the first look at the tables:
  // in a raw data file zeroes and writes that touch the same clusters exclude
  // each other, or file and tables might end up with one of each.
  using Turn = std::optional<RangeTracker::Hold>;
  Turn take_turn(ByteRange guest, RangeTracker::Mode mode) const;

  // Where in these guest clusters, which end at `end`, stored bytes end: an
  // external file is no longer than the guest's disk.
  uint64_t stored_end(uint64_t end) const;

  // Before the tables say that `guest` reads as zeroes: a raw data file does.
  // REQUIRES: an exclusive turn.
  absl::Status zero_raw(ByteRange guest, WriteZeroesFlags flags) const;
  // The tables no longer name `guest`.  (The allocator punches holes into the
  // image's own file.)
  void forget(ByteRange guest) const;

 private:
  const Parts parts_;
  const Options options_;
  const std::unique_ptr<RangeTracker> raw_requests_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DATA_CLUSTERS_H_

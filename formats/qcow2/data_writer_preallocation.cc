// Preallocation: what a first write does, without the data.
#include <algorithm>

#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/preallocation.h"

namespace spindle::qcow2 {

absl::Status DataWriter::preallocate(ByteRange clusters, Preallocation mode,
                                     bool hide_backing) {
  const Geometry& geometry = image_.geometry();
  uint64_t next_cluster = 0;
  while (!clusters.empty()) {
    const GuestOffset guest{clusters.offset};
    absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(guest);
    if (!slice.ok()) return slice.status();
    const uint64_t wanted =
        std::min(clusters.length, image_.map().bytes_left_in_slice(guest));
    const absl::StatusOr<Allocator::Allocation> allocation =
        image_.data_clusters().allocate(guest, geometry.cluster_index(wanted),
                                        next_cluster);
    if (!allocation.ok()) return allocation.status();
    const HostClusters host = allocation->clusters;
    const ByteRange area{geometry.cluster_offset(host.first),
                         geometry.cluster_offset(host.count)};
    absl::Status status;
    const bool needs_zeroes =
        mode != Preallocation::kMetadata || !allocation->reads_as_zeroes;
    if (needs_zeroes && !image_.data_clusters().is_external())
      status = reserve_zeroes(&image_.file(), area, mode);
    if (!status.ok()) {
      image_.data_clusters().free_unpublished(host);
      return status;
    }
    const bool is_allocated = !geometry.extended_l2 || hide_backing;
    publish(slice->get(), guest, host,
            {guest.bytes, is_allocated ? area.length : 0});
    next_cluster = host.end();
    clusters = {clusters.offset + area.length, clusters.length - area.length};
    status = image_.rounds().write_back_if_crowded();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace spindle::qcow2

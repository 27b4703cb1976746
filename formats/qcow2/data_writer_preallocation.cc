// Preallocation: what a first write does, without the data.
#include <algorithm>
#include <vector>

#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/l2_slice.h"
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
    // What is encrypted and was never written would read as noise, as it does
    // in QEMU: unless the entries say that it is zeroes.
    const bool is_encrypted = image_.transfer().is_encrypted();
    if (status.ok() && is_encrypted && geometry.version < 3)
      status = write_zero_clusters(guest, host);
    if (!status.ok()) {
      image_.data_clusters().free_unpublished(host);
      return status;
    }
    const bool is_allocated = !geometry.extended_l2 || hide_backing;
    if (is_encrypted && is_allocated && geometry.version >= 3) {
      publish_zeroes(slice->get(), guest, host);
    } else {
      publish(slice->get(), guest, host,
              {guest.bytes, is_allocated ? area.length : 0});
    }
    next_cluster = host.end();
    clusters = {clusters.offset + area.length, clusters.length - area.length};
    status = image_.rounds().write_back_if_crowded();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void DataWriter::publish_zeroes(Slice* slice, GuestOffset first_guest,
                                HostClusters host) {
  const Geometry& geometry = image_.geometry();
  const L2Entry zero = L2Entry::zero_plain(geometry);
  const size_t first_index = image_.map().index_in_slice(first_guest);
  image_.data_clusters().note_published(host);
  MetadataLock lock(&slice->mutex);
  slice->note_new_mapping();
  for (uint64_t i = 0; i < host.count; ++i) {
    const L2Entry entry =
        L2Entry::normal({geometry.cluster_offset(host.first + i)});
    store_entry(slice, geometry, first_index + i,
                L2Entry(entry.raw() | zero.raw(), zero.bitmap()));
  }
}

absl::Status DataWriter::write_zero_clusters(GuestOffset first_guest,
                                             HostClusters host) {
  const Geometry& geometry = image_.geometry();
  std::vector<uint8_t> zeroes(geometry.cluster_bytes());
  absl::Status status;
  for (uint64_t i = 0; status.ok() && i < host.count; ++i) {
    status = image_.transfer().write(
        Purpose::kPwritevZero, IoVector(zeroes.data(), zeroes.size()),
        {first_guest.bytes + geometry.cluster_offset(i)},
        {geometry.cluster_offset(host.first + i)});
  }
  return status;
}

}  // namespace spindle::qcow2

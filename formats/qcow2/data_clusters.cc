#include "formats/qcow2/data_clusters.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"

namespace spindle::qcow2 {

DataClusters::DataClusters(Parts parts, Options options)
    : parts_(parts),
      options_(options),
      raw_requests_(parts.external != nullptr && options.raw
                        ? std::make_unique<RangeTracker>()
                        : nullptr) {}

absl::Status DataClusters::check_place(ByteRange host) const {
  // ClusterMap::check_entry() has said that it is the guest's own offset.
  if (is_external()) return absl::OkStatus();
  const uint64_t first = parts_.geometry->cluster_index(host.offset);
  const uint64_t last = parts_.geometry->cluster_index(host.end() - 1);
  if (const auto metadata = parts_.extents->find_overlap(host)) {
    return absl::DataLossError(
        absl::StrCat("a write of guest data to host offset ", host.offset,
                     " would hit the image's ", metadata_kind_name(*metadata)));
  }
  if (parts_.allocator->is_beyond_high_water({first, last - first + 1})) {
    return absl::DataLossError(
        absl::StrCat("guest data is mapped to host offset ", host.offset,
                     ", beyond the end of the file"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Allocator::Allocation> DataClusters::allocate(
    GuestOffset guest, uint64_t count, uint64_t next_cluster) const {
  if (is_external()) {
    // What lies there is unknown: it may be the rest of an earlier write.
    return Allocator::Allocation{
        {parts_.geometry->cluster_index(guest.bytes), count}, false};
  }
  // A write that goes on where it ended in the file stays in one piece there,
  // as far as there is room: that is where QEMU places it.
  if (next_cluster != 0) {
    absl::StatusOr<Allocator::Allocation> behind =
        parts_.allocator->allocate_at(next_cluster, count);
    if (!behind.ok() || behind->clusters.count != 0) return behind;
  }
  return parts_.allocator->allocate(count);
}

void DataClusters::note_published(HostClusters clusters) const {
  if (!is_external()) parts_.allocator->note_published(clusters);
}

void DataClusters::free_unpublished(HostClusters clusters) const {
  if (!is_external()) parts_.allocator->free_unpublished(clusters);
}

DataClusters::Turn DataClusters::take_turn(ByteRange guest,
                                           RangeTracker::Mode mode) const {
  if (!is_raw()) return std::nullopt;
  const uint64_t begin = parts_.geometry->cluster_start(guest.offset);
  const uint64_t end = align_up(guest.end(), parts_.geometry->cluster_bytes());
  return Turn(std::in_place, raw_requests_.get(), ByteRange{begin, end - begin},
              mode);
}

uint64_t DataClusters::stored_end(uint64_t end) const {
  return is_external() ? std::min(end, parts_.geometry->size_bytes) : end;
}

absl::Status DataClusters::zero_raw(ByteRange guest,
                                    WriteZeroesFlags flags) const {
  if (!is_raw()) return absl::OkStatus();
  flags.may_unmap = flags.may_unmap && options_.pass_discard_through;
  guest.length = stored_end(guest.end()) - guest.offset;
  return parts_.external->write_zeroes(Purpose::kPwritevZero, guest, flags);
}

void DataClusters::forget(ByteRange guest) const {
  // A raw file has zeroes there, and keeps them.
  if (!is_external() || is_raw() || !options_.pass_discard_through) return;
  // Advice: a file that keeps the bytes is none the worse.
  parts_.external->discard(Purpose::kClusterFree, guest).IgnoreError();
}

}  // namespace spindle::qcow2

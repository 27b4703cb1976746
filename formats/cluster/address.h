// Addresses inside an image that is mapped by clusters, as types that cannot be
// swapped, and the arithmetic of clusters.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_CLUSTER_ADDRESS_H_
#define SPINDLE_FORMATS_CLUSTER_ADDRESS_H_

#include <compare>
#include <cstdint>

namespace spindle {

// A byte offset as the guest sees it.
struct GuestOffset {
  uint64_t bytes = 0;
  constexpr auto operator<=>(const GuestOffset&) const = default;
};

// A byte offset in the image file.
struct HostOffset {
  uint64_t bytes = 0;
  constexpr auto operator<=>(const HostOffset&) const = default;
};

// A run of whole host clusters, by index (host offset / cluster size).
struct HostClusters {
  uint64_t first = 0;
  uint64_t count = 0;
  constexpr uint64_t end() const { return first + count; }
  constexpr bool operator==(const HostClusters&) const = default;
};

// A power of two, as the header states it, and what follows from it.
struct ClusterSize {
  uint32_t cluster_bits = 16;

  constexpr uint64_t cluster_bytes() const {
    return uint64_t{1} << cluster_bits;
  }
  constexpr uint64_t offset_in_cluster(uint64_t bytes) const {
    return bytes & (cluster_bytes() - 1);
  }
  constexpr uint64_t cluster_start(uint64_t bytes) const {
    return bytes - offset_in_cluster(bytes);
  }
  constexpr uint64_t cluster_index(uint64_t bytes) const {
    return bytes >> cluster_bits;
  }
  constexpr uint64_t cluster_offset(uint64_t index) const {
    return index << cluster_bits;
  }
  // Clusters that hold `bytes` bytes.  REQUIRES: bytes is far from 2^64.
  constexpr uint64_t clusters_for(uint64_t bytes) const {
    return cluster_index(bytes + cluster_bytes() - 1);
  }
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_ADDRESS_H_

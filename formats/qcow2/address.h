// The arithmetic of a qcow2 image's clusters and tables.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW2_ADDRESS_H_
#define SPINDLE_FORMATS_QCOW2_ADDRESS_H_

#include <cstdint>

#include "formats/cluster/address.h"

namespace spindle::qcow2 {

// The sizes that the header fixes for the life of the image.
struct Geometry : ClusterSize {
  uint32_t version = 3;
  uint32_t refcount_order = 4;
  // Tables are cached in pieces of this size: a power of two, at least 512 and
  // at most the cluster size.
  uint32_t slice_bytes = 4096;
  uint64_t size_bytes = 0;  // virtual size
  // "Extended L2 Entries": a cluster has 32 subclusters, and its entry a
  // bitmap.
  bool extended_l2 = false;
  // Guest data live in a file of their own, each cluster at the guest's offset.
  bool external_data = false;

  // "Cluster mapping": an L2 table fills one cluster with entries of 8 bytes,
  // or 16 if they are extended.
  constexpr uint32_t l2_entry_bytes() const { return extended_l2 ? 16 : 8; }
  constexpr uint32_t l2_bits() const {
    return cluster_bits - (extended_l2 ? 4 : 3);
  }
  constexpr uint64_t l1_index(GuestOffset guest) const {
    return guest.bytes >> (cluster_bits + l2_bits());
  }
  // Entries that an L1 table must have for a disk of `bytes` bytes.
  // REQUIRES: bytes is far from 2^64.
  constexpr uint64_t l1_entries_for(uint64_t bytes) const {
    return l1_index({bytes + l1_entry_coverage_bytes() - 1});
  }
  // Guest bytes that one L1 entry covers.
  constexpr uint64_t l1_entry_coverage_bytes() const {
    return cluster_bytes() << l2_bits();
  }
  // Index within the L2 table.
  constexpr uint64_t l2_index(GuestOffset guest) const {
    return (guest.bytes >> cluster_bits) & ((uint64_t{1} << l2_bits()) - 1);
  }
  constexpr uint64_t l2_entries_per_slice() const {
    return slice_bytes / l2_entry_bytes();
  }
  constexpr uint64_t guest_bytes_per_slice() const {
    return l2_entries_per_slice() << cluster_bits;
  }

  // What is allocated by itself: without subclusters, a cluster.
  constexpr uint32_t subcluster_bits() const {
    return cluster_bits - (extended_l2 ? 5 : 0);
  }
  constexpr uint64_t subcluster_bytes() const {
    return uint64_t{1} << subcluster_bits();
  }

  // "Refcounts": a refcount block fills one cluster.
  constexpr uint32_t refcount_bits() const { return 1u << refcount_order; }
  constexpr uint32_t refblock_entry_bits() const {
    return cluster_bits + 3 - refcount_order;
  }
  constexpr uint64_t refblock_entries() const {
    return uint64_t{1} << refblock_entry_bits();
  }
  constexpr uint64_t max_refcount() const {
    return refcount_order == 6 ? ~uint64_t{0}
                               : (uint64_t{1} << refcount_bits()) - 1;
  }
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_ADDRESS_H_

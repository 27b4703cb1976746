// The arithmetic of a qcow image's clusters and tables.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW_ADDRESS_H_
#define SPINDLE_FORMATS_QCOW_ADDRESS_H_

#include <cstdint>

#include "formats/cluster/address.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {

// The sizes that the header fixes for the life of the image.
struct Geometry : ClusterSize {
  uint32_t l2_bits = 9;
  // Tables are cached in pieces of this size: a power of two, at least 512 and
  // at most the size of an L2 table.
  uint32_t slice_bytes = 4096;
  uint64_t size_bytes = 0;  // of the disk: whole sectors

  constexpr uint64_t l2_entries() const { return uint64_t{1} << l2_bits; }
  constexpr uint64_t l2_table_bytes() const {
    return l2_entries() * kL2EntryBytes;
  }
  constexpr uint64_t l1_index(GuestOffset guest) const {
    return guest.bytes >> (cluster_bits + l2_bits);
  }
  // Index within the L2 table.
  constexpr uint64_t l2_index(GuestOffset guest) const {
    return (guest.bytes >> cluster_bits) & (l2_entries() - 1);
  }
  constexpr uint64_t l2_entries_per_slice() const {
    return slice_bytes / kL2EntryBytes;
  }
  constexpr uint64_t guest_bytes_per_slice() const {
    return l2_entries_per_slice() << cluster_bits;
  }
  constexpr uint64_t index_in_slice(GuestOffset guest) const {
    return l2_index(guest) % l2_entries_per_slice();
  }
  // Guest bytes from `guest` on that its slice covers.
  constexpr uint64_t bytes_left_in_slice(GuestOffset guest) const {
    return guest_bytes_per_slice() - guest.bytes % guest_bytes_per_slice();
  }
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_ADDRESS_H_

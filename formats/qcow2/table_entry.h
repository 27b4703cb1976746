// Entries of L1, L2 and refcount tables: the bits, and what they say.
//
// qcow2 specification, "L1 table entry", "L2 table entry", "Standard Cluster
// Descriptor", "Compressed Clusters Descriptor", "Refcount table entry".
// Reserved bits are masked here; `check` reports them.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW2_TABLE_ENTRY_H_
#define SPINDLE_FORMATS_QCOW2_TABLE_ENTRY_H_

#include <cstdint>

#include "formats/qcow2/address.h"
#include "formats/qcow2/layout.h"

namespace spindle::qcow2 {

enum class ClusterKind : uint8_t {
  kUnallocated,    // the backing file shows through; zeroes without one
  kZeroPlain,      // zeroes, no host cluster
  kZeroAllocated,  // zeroes, with a host cluster kept for later
  kNormal,
  kCompressed,
};

// Where a compressed cluster's data lies: `bytes` bytes at `host`, which share
// their host clusters with others.
struct CompressedExtent {
  HostOffset host;
  uint64_t bytes = 0;
};

// The descriptor of a cluster and, in an image with subclusters, their bitmap
// (subclusters.h says what that means; elsewhere it is 0).  There the zero flag
// is reserved, and kind() says nothing about zeroes.
class L2Entry {
 public:
  constexpr L2Entry() = default;
  constexpr explicit L2Entry(uint64_t raw, uint64_t bitmap = 0)
      : raw_(raw), bitmap_(bitmap) {}

  static constexpr L2Entry normal(HostOffset host) {
    return L2Entry(host.bytes | kEntryCopied);
  }
  // REQUIRES: can_name_compressed(), and the bytes fit the descriptor.
  static constexpr L2Entry compressed_at(HostOffset host, uint64_t bytes,
                                         const Geometry& geometry) {
    const uint64_t sectors =
        (host.bytes + bytes - 1) / kCompressedSectorBytes -
        host.bytes / kCompressedSectorBytes;  // additional ones
    return L2Entry(kL2Compressed | host.bytes |
                   sectors << compressed_offset_bits(geometry));
  }
  // False if `host` lies too far behind for the bits that a compressed
  // cluster's descriptor has.
  static constexpr bool can_name_compressed(HostOffset host,
                                            const Geometry& geometry) {
    return host.bytes >> compressed_offset_bits(geometry) == 0;
  }
  // REQUIRES: version 3.
  static constexpr L2Entry zero_plain(const Geometry& geometry) {
    return geometry.extended_l2 ? L2Entry(0, kBitmapAllZero)
                                : L2Entry(kL2ZeroFlag);
  }

  constexpr uint64_t raw() const { return raw_; }
  constexpr uint64_t bitmap() const { return bitmap_; }
  // The same place, with another bitmap.
  constexpr L2Entry with_bitmap(uint64_t bitmap) const {
    return L2Entry(raw_, bitmap);
  }
  constexpr bool copied() const { return (raw_ & kEntryCopied) != 0; }
  constexpr HostOffset host() const { return HostOffset{raw_ & kL2OffsetMask}; }
  // In an external data file a cluster may stand at offset 0, which COPIED says
  // (load_entry() sees to it that it does so only there).
  constexpr bool has_host() const {
    return host().bytes != 0 || (copied() && (raw_ & kL2Compressed) == 0);
  }

  constexpr ClusterKind kind() const {
    if ((raw_ & kL2Compressed) != 0) return ClusterKind::kCompressed;
    if ((raw_ & kL2ZeroFlag) != 0) {
      // As QEMU sees it, one that only COPIED tells of is not kept.
      return host().bytes != 0 ? ClusterKind::kZeroAllocated
                               : ClusterKind::kZeroPlain;
    }
    return has_host() ? ClusterKind::kNormal : ClusterKind::kUnallocated;
  }

  // REQUIRES: kind() == kCompressed.
  constexpr CompressedExtent compressed(const Geometry& geometry) const {
    const uint32_t offset_bits = compressed_offset_bits(geometry);
    const uint64_t offset = raw_ & ((uint64_t{1} << offset_bits) - 1);
    const uint64_t sectors = ((raw_ & (kL2Compressed - 1)) >> offset_bits) + 1;
    const uint64_t into_sector = offset % kCompressedSectorBytes;
    return {HostOffset{offset}, sectors * kCompressedSectorBytes - into_sector};
  }

  // The host clusters that this entry holds a reference to; count 0 for none.
  constexpr HostClusters references(const Geometry& geometry) const {
    if (kind() == ClusterKind::kCompressed) {
      const CompressedExtent extent = compressed(geometry);
      const uint64_t first = geometry.cluster_index(extent.host.bytes);
      const uint64_t last =
          geometry.cluster_index(extent.host.bytes + extent.bytes - 1);
      return {first, last - first + 1};
    }
    if (!has_host() || geometry.external_data) return {};
    return {geometry.cluster_index(host().bytes), 1};
  }

  // True if the image alone refers to the host cluster, which holds its data as
  // they are: what is written there disturbs nobody else.
  constexpr bool is_own() const {
    return copied() && has_host() && (raw_ & kL2Compressed) == 0;
  }
  // True if a guest's write may go to the host cluster as it is: nobody else
  // refers to it, and its content is the guest's.  REQUIRES: no subclusters.
  constexpr bool writable_in_place() const {
    return kind() == ClusterKind::kNormal && copied();
  }

  constexpr bool operator==(const L2Entry&) const = default;

 private:
  static constexpr uint32_t compressed_offset_bits(const Geometry& geometry) {
    return kCompressedOffsetBitsBase -
           (geometry.cluster_bits - kCompressedClusterBitsBase);
  }

  uint64_t raw_ = 0;
  uint64_t bitmap_ = 0;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_TABLE_ENTRY_H_

// An entry of an L2 table: the bits, and what they say.
//
// "The QCOW Image Format", section "L2 Tables".
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW_TABLE_ENTRY_H_
#define SPINDLE_FORMATS_QCOW_TABLE_ENTRY_H_

#include <cstdint>

#include "engine/sector.h"
#include "formats/cluster/address.h"
#include "formats/qcow/address.h"
#include "formats/qcow/layout.h"

namespace spindle::qcow {

enum class ClusterKind : uint8_t {
  kUnallocated,  // the backing file shows through; zeroes without one
  kNormal,
  kCompressed,
};

class L2Entry {
 public:
  constexpr L2Entry() = default;
  constexpr explicit L2Entry(uint64_t raw) : raw_(raw) {}

  static constexpr L2Entry normal(HostOffset host) {
    return L2Entry(host.bytes);
  }
  // REQUIRES: can_name_compressed(), bytes is less than a cluster.
  static constexpr L2Entry compressed_at(HostOffset host, uint64_t bytes,
                                         const Geometry& geometry) {
    return L2Entry(kL2Compressed | bytes << offset_bits(geometry) | host.bytes);
  }
  // False if `host` lies too far behind for the bits that a compressed
  // cluster's entry has.
  static constexpr bool can_name_compressed(HostOffset host,
                                            const Geometry& geometry) {
    return host.bytes >> offset_bits(geometry) == 0;
  }

  constexpr uint64_t raw() const { return raw_; }
  constexpr ClusterKind kind() const {
    if ((raw_ & kL2Compressed) != 0) return ClusterKind::kCompressed;
    return raw_ != 0 ? ClusterKind::kNormal : ClusterKind::kUnallocated;
  }
  // REQUIRES: kind() == kNormal.
  constexpr HostOffset host() const { return HostOffset{raw_}; }

  // Where the bytes lie that it names, in the file; empty for none.
  constexpr ByteRange place(const Geometry& geometry) const {
    switch (kind()) {
      case ClusterKind::kUnallocated:
        return {};
      case ClusterKind::kNormal:
        return {raw_, geometry.cluster_bytes()};
      case ClusterKind::kCompressed:
        break;
    }
    const uint32_t bits = offset_bits(geometry);
    return {raw_ & ((uint64_t{1} << bits) - 1),
            (raw_ & ~kL2Compressed) >> bits};
  }

  constexpr bool operator==(const L2Entry&) const = default;

 private:
  static constexpr uint32_t offset_bits(const Geometry& geometry) {
    return kCompressedBits - geometry.cluster_bits;
  }

  uint64_t raw_ = 0;
};

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_TABLE_ENTRY_H_

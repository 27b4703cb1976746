// The unit of the driver contract, as types that cannot be confused.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_SECTOR_H_
#define SPINDLE_ENGINE_SECTOR_H_

#include <compare>
#include <cstdint>

namespace spindle {

inline constexpr uint32_t kSectorBits = 9;
inline constexpr uint64_t kSectorSizeBytes = uint64_t{1} << kSectorBits;

// The index of a 512-byte sector.
class Sector {
 public:
  constexpr Sector() = default;
  constexpr explicit Sector(uint64_t index) : index_(index) {}

  // REQUIRES: offset_bytes is a multiple of 512.
  static constexpr Sector from_byte_offset(uint64_t offset_bytes) {
    return Sector(offset_bytes >> kSectorBits);
  }

  constexpr uint64_t index() const { return index_; }
  // REQUIRES: the sector lies within 2^64 bytes.
  constexpr uint64_t byte_offset() const { return index_ << kSectorBits; }

  constexpr auto operator<=>(const Sector&) const = default;

 private:
  uint64_t index_ = 0;
};

// A range of bytes [offset, offset + length).  Holders keep the invariant that
// the end does not overflow; make_byte_range in checked_math.h makes one from
// numbers that nobody has checked yet.
struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;

  constexpr uint64_t end() const { return offset + length; }
  constexpr bool empty() const { return length == 0; }
  constexpr bool contains(const ByteRange& other) const {
    return other.offset >= offset && other.end() <= end();
  }
  constexpr bool overlaps(const ByteRange& other) const {
    return offset < other.end() && other.offset < end();
  }
  constexpr bool operator==(const ByteRange&) const = default;
};

constexpr bool is_sector_aligned(uint64_t bytes) {
  return bytes % kSectorSizeBytes == 0;
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SECTOR_H_

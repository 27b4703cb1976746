// Reading and writing refcounts of any width inside a refcount block.
//
// qcow2 specification, "Refcount block entry": 1 to 64 bits wide; widths below
// a byte fill each byte from its least significant bits upwards, wider ones are
// big-endian.
//
// Thread safety: pure functions on the caller's memory.
#ifndef SPINDLE_FORMATS_QCOW2_REFCOUNT_ENTRY_H_
#define SPINDLE_FORMATS_QCOW2_REFCOUNT_ENTRY_H_

#include <cstddef>
#include <cstdint>

#include "engine/byte_order.h"

namespace spindle::qcow2 {

// The bytes [begin, end) of a block that hold an entry.
struct RefcountBytes {
  size_t begin = 0;
  size_t end = 0;
};

constexpr RefcountBytes refcount_bytes_of(uint32_t refcount_order,
                                          uint64_t index) {
  if (refcount_order < 3) {
    const size_t byte = static_cast<size_t>(index >> (3 - refcount_order));
    return {byte, byte + 1};
  }
  const size_t width = size_t{1} << (refcount_order - 3);
  return {static_cast<size_t>(index) * width,
          (static_cast<size_t>(index) + 1) * width};
}

inline uint64_t load_refcount(const uint8_t* block, uint32_t refcount_order,
                              uint64_t index) {
  const uint8_t* const at =
      block + refcount_bytes_of(refcount_order, index).begin;
  switch (refcount_order) {
    case 3:
      return *at;
    case 4:
      return load_big16(at);
    case 5:
      return load_big32(at);
    case 6:
      return load_big64(at);
    default: {
      const uint32_t bits = 1u << refcount_order;
      const uint32_t shift = static_cast<uint32_t>(index % (8 / bits)) * bits;
      return (*at >> shift) & ((1u << bits) - 1);
    }
  }
}

// REQUIRES: value fits the width.
inline void store_refcount(uint8_t* block, uint32_t refcount_order,
                           uint64_t index, uint64_t value) {
  uint8_t* const at = block + refcount_bytes_of(refcount_order, index).begin;
  switch (refcount_order) {
    case 3:
      *at = static_cast<uint8_t>(value);
      return;
    case 4:
      store_big16(at, static_cast<uint16_t>(value));
      return;
    case 5:
      store_big32(at, static_cast<uint32_t>(value));
      return;
    case 6:
      store_big64(at, value);
      return;
    default: {
      const uint32_t bits = 1u << refcount_order;
      const uint32_t shift = static_cast<uint32_t>(index % (8 / bits)) * bits;
      const uint32_t mask = ((1u << bits) - 1) << shift;
      *at = static_cast<uint8_t>((*at & ~mask) |
                                 (static_cast<uint32_t>(value) << shift));
    }
  }
}

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_REFCOUNT_ENTRY_H_

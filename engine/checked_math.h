// Arithmetic on numbers that nobody has checked yet: lengths and offsets from
// an image or from a caller.  Each function gives nothing on overflow.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_CHECKED_MATH_H_
#define SPINDLE_ENGINE_CHECKED_MATH_H_

#include <bit>
#include <cstdint>
#include <optional>

#include "engine/sector.h"

namespace spindle {

constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

constexpr std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// The range [offset, offset + length), if its end fits.
constexpr std::optional<ByteRange> make_byte_range(uint64_t offset,
                                                   uint64_t length) {
  if (!checked_add(offset, length).has_value()) return std::nullopt;
  return ByteRange{offset, length};
}

constexpr bool is_power_of_two(uint64_t value) {
  return std::has_single_bit(value);
}

// REQUIRES: alignment is a power of two.
constexpr bool is_aligned(uint64_t value, uint64_t alignment) {
  return (value & (alignment - 1)) == 0;
}
constexpr uint64_t align_down(uint64_t value, uint64_t alignment) {
  return value & ~(alignment - 1);
}
constexpr std::optional<uint64_t> checked_align_up(uint64_t value,
                                                   uint64_t alignment) {
  const std::optional<uint64_t> raised = checked_add(value, alignment - 1);
  if (!raised.has_value()) return std::nullopt;
  return align_down(*raised, alignment);
}
// REQUIRES: the result fits in 64 bits (the value was checked before).
constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return align_down(value + (alignment - 1), alignment);
}

// REQUIRES: divisor > 0.
constexpr uint64_t divide_round_up(uint64_t value, uint64_t divisor) {
  return value / divisor + (value % divisor != 0 ? 1 : 0);
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_CHECKED_MATH_H_

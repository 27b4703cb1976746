// Explicit big- and little-endian loads and stores: how on-disk structures are
// read and written, field by field, never by overlaying a struct.
//
// Thread safety: pure functions on the caller's memory.
#ifndef SPINDLE_ENGINE_BYTE_ORDER_H_
#define SPINDLE_ENGINE_BYTE_ORDER_H_

#include <bit>
#include <cstdint>
#include <cstring>

namespace spindle {
namespace byte_order_internal {

constexpr uint16_t swap(uint16_t value) { return __builtin_bswap16(value); }
constexpr uint32_t swap(uint32_t value) { return __builtin_bswap32(value); }
constexpr uint64_t swap(uint64_t value) { return __builtin_bswap64(value); }

template <typename T, std::endian kOrder>
T load(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return kOrder == std::endian::native ? value : swap(value);
}

template <typename T, std::endian kOrder>
void store(void* to, T value) {
  if (kOrder != std::endian::native) value = swap(value);
  std::memcpy(to, &value, sizeof(value));
}

}  // namespace byte_order_internal

// The addresses need no alignment.
inline uint16_t load_big16(const void* from) {
  return byte_order_internal::load<uint16_t, std::endian::big>(from);
}
inline uint32_t load_big32(const void* from) {
  return byte_order_internal::load<uint32_t, std::endian::big>(from);
}
inline uint64_t load_big64(const void* from) {
  return byte_order_internal::load<uint64_t, std::endian::big>(from);
}
inline void store_big16(void* to, uint16_t value) {
  byte_order_internal::store<uint16_t, std::endian::big>(to, value);
}
inline void store_big32(void* to, uint32_t value) {
  byte_order_internal::store<uint32_t, std::endian::big>(to, value);
}
inline void store_big64(void* to, uint64_t value) {
  byte_order_internal::store<uint64_t, std::endian::big>(to, value);
}
inline uint16_t load_little16(const void* from) {
  return byte_order_internal::load<uint16_t, std::endian::little>(from);
}
inline uint32_t load_little32(const void* from) {
  return byte_order_internal::load<uint32_t, std::endian::little>(from);
}
inline uint64_t load_little64(const void* from) {
  return byte_order_internal::load<uint64_t, std::endian::little>(from);
}
inline void store_little16(void* to, uint16_t value) {
  byte_order_internal::store<uint16_t, std::endian::little>(to, value);
}
inline void store_little32(void* to, uint32_t value) {
  byte_order_internal::store<uint32_t, std::endian::little>(to, value);
}
inline void store_little64(void* to, uint64_t value) {
  byte_order_internal::store<uint64_t, std::endian::little>(to, value);
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BYTE_ORDER_H_

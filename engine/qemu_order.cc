#include "engine/qemu_order.h"

#include <cstddef>

namespace spindle {

uint32_t qemu_order(absl::string_view name) {
  constexpr uint32_t kBuckets = 512;
  // gdbm's constants.
  uint32_t hash = 0x238f13af * static_cast<uint32_t>(name.size());
  for (size_t i = 0; i < name.size(); ++i)
    hash += uint32_t{static_cast<uint8_t>(name[i])} << (i * 5 % 24);
  return (1103515243 * hash + 12345) % kBuckets;
}

}  // namespace spindle

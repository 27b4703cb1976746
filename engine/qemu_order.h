// The order in which QEMU's tools list the members of an object: in JSON that
// they print, and where of several unknown options the first is named.
//
// It is the order of a table of 512 buckets under gdbm's hash function, as
// their output shows.  Programs that stand in for them list members the same
// way.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_QEMU_ORDER_H_
#define SPINDLE_ENGINE_QEMU_ORDER_H_

#include <cstdint>
#include <tuple>

#include "absl/strings/string_view.h"

namespace spindle {

// 0 to 511: smaller ones come first.
uint32_t qemu_order(absl::string_view name);

// For ordered containers.
struct QemuOrder {
  bool operator()(absl::string_view a, absl::string_view b) const {
    return std::make_tuple(qemu_order(a), a) <
           std::make_tuple(qemu_order(b), b);
  }
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_QEMU_ORDER_H_

// What an unaligned write reads at its two ends, so that it becomes aligned.
//
// Thread safety: functions without state; whoever calls holds the range.
#ifndef SPINDLE_ENGINE_WRITE_PADDING_H_
#define SPINDLE_ENGINE_WRITE_PADDING_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/access.h"

namespace spindle {

// A write of [begin, end), which is not empty, in units of `unit_bytes`, a
// power of two.
struct UnalignedWrite {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t unit_bytes = 0;
  uint64_t first_unit() const { return begin & ~(unit_bytes - 1); }
  uint64_t last_unit() const { return (end - 1) & ~(unit_bytes - 1); }
  bool has_one_unit() const { return first_unit() == last_unit(); }
  // Of the first unit, before the write; of the last, behind it.
  uint64_t head_bytes() const { return begin - first_unit(); }
  uint64_t tail_bytes() const { return last_unit() + unit_bytes - end; }
};

// Has `read` read the first unit into `head` and the last into `tail`, which
// is `head` where there is one unit only: those that `write` covers in part.
// `observer`, which may be null, is told of it by QEMU's names where units are
// longer than a sector.
absl::Status read_padding(
    const UnalignedWrite& write, AccessObserver* observer, uint8_t* head,
    uint8_t* tail,
    absl::FunctionRef<absl::Status(uint64_t offset, uint8_t* to)> read);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_WRITE_PADDING_H_

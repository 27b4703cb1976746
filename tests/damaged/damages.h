// Damages: what a sound image can suffer, systematically: each field of the
// header and of its extensions, entries of each kind of table, one at a time
// and with several values each; the file cut off, or longer.
//
// Thread safety: values.
#ifndef SPINDLE_TESTS_DAMAGED_DAMAGES_H_
#define SPINDLE_TESTS_DAMAGED_DAMAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/damaged/base_image.h"

namespace spindle::testing {

struct Damage {
  // "L2 entry 3, standard: offset -> 0x1000".
  std::string name;
  struct Patch {
    uint64_t offset = 0;
    Bytes bytes;
  };
  std::vector<Patch> patches;
  // The file's new length.
  std::optional<uint64_t> length;
};

Bytes damaged_by(const Damage& damage, const Bytes& image);

// All of them; no two give the same bytes.  The first is none.
std::vector<Damage> damages_of(const BaseImage& base);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_DAMAGED_DAMAGES_H_

// Runs of data and of zeroes in a buffer.
//
// Thread safety: pure functions.
#ifndef SPINDLE_ENGINE_JOBS_ZERO_RUNS_H_
#define SPINDLE_ENGINE_JOBS_ZERO_RUNS_H_

#include <cstdint>

#include "absl/types/span.h"

namespace spindle {

struct ZeroRunRules {
  // Runs of zeroes begin and end at multiples of this in the image (data grow
  // to meet them); a power of two, at least a sector.
  uint64_t alignment_bytes = 512;
  // Shorter runs of zeroes behind data count as data.
  uint64_t min_zeroes_bytes = 512;
};

struct ZeroRun {
  uint64_t length = 0;
  bool zero = false;
};

// The run at the start of `data`, whose first byte is byte `offset` of the
// image.
// REQUIRES: data is not empty; its length and `offset` are whole sectors.
ZeroRun first_run(absl::Span<const uint8_t> data, uint64_t offset,
                  const ZeroRunRules& rules);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_ZERO_RUNS_H_

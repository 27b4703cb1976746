// A picture of a sweep: throughput and latency over queue depth, a line for
// each width of the pool, and one for QEMU.
//
// Thread safety: pure functions.
#ifndef SPINDLE_TOOLS_SWEEP_PICTURE_H_
#define SPINDLE_TOOLS_SWEEP_PICTURE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "tools/picture.h"

namespace spindle {

struct SweepPoint {
  size_t depth = 0;
  double operations_per_second = 0;

  // What a request takes when `depth` are always in flight (Little's law).
  double mean_latency_microseconds() const {
    return static_cast<double>(depth) * 1e6 / operations_per_second;
  }
};

struct SweepLine {
  std::string name;
  std::vector<SweepPoint> points;  // by depth, rising
};

// REQUIRES: no rate is 0, and no depth.
Picture draw_sweep(const std::string& title,
                   const std::vector<SweepLine>& lines);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_SWEEP_PICTURE_H_

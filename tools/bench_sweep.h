// A table of what an image delivers over queue depths and pool widths.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_BENCH_SWEEP_H_
#define SPINDLE_TOOLS_BENCH_SWEEP_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tools/bench_runner.h"
#include "tools/bench_session.h"

namespace spindle {

// Requests per cell of the table, where the user does not say.
inline constexpr uint64_t kSweepRequestCount = 20000;

struct SweepOptions {
  BenchOptions bench;  // all but the depth
  std::vector<size_t> depths = {1, 8, 32, 128};
  std::vector<size_t> widths = {1, 2, 8, 64};
  // Where a picture of it goes, beside what qemu-img delivers where that is
  // installed; empty: none is made.
  std::string picture;
};

// Prints the table to standard output, row by row, and a progress bar to
// standard error where that is a terminal.  Each row opens the image anew and
// warms up before it measures.
absl::Status run_sweep(const BenchTarget& target, const SweepOptions& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_BENCH_SWEEP_H_

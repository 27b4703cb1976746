// QEMU's own `qemu-img bench`, where it is installed, for comparison.
//
// Thread safety: pure functions; they start processes.
#ifndef SPINDLE_TOOLS_QEMU_BENCH_H_
#define SPINDLE_TOOLS_QEMU_BENCH_H_

#include <string>

#include "absl/status/statusor.h"
#include "tools/bench_runner.h"
#include "tools/bench_session.h"

namespace spindle {

// Where qemu-img is; empty: nowhere in $PATH, or only as a name of this
// program.
std::string find_qemu_img();

// What `program` delivers with the same requests, in operations per second.
// Errors: kUnimplemented for what it cannot do (random offsets); kInternal if
// it fails or says something else.
absl::StatusOr<double> run_qemu_bench(const std::string& program,
                                      const BenchTarget& target,
                                      const BenchOptions& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_QEMU_BENCH_H_

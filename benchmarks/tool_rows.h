// spindle-img beside qemu-img: whole runs of the programs, on an image of data,
// zeroes and holes; time and memory.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_TOOL_ROWS_H_
#define SPINDLE_BENCHMARKS_TOOL_ROWS_H_

#include <string>

#include "absl/status/status.h"
#include "benchmarks/bench_settings.h"

namespace spindle::benchmarks {

// `program` is the path of spindle-img.
absl::Status add_tool_rows(const BenchContext& context,
                           const std::string& program);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_TOOL_ROWS_H_

// The rows of the table that are about metadata: check, and opening.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_METADATA_ROWS_H_
#define SPINDLE_BENCHMARKS_METADATA_ROWS_H_

#include "absl/status/status.h"
#include "benchmarks/bench_settings.h"

namespace spindle::benchmarks {

// A check of an image with a million allocated clusters, beside qemu-img.
absl::Status add_check_row(const BenchContext& context);

// Opening an image of a petabyte, beside reading its L1 table and turning its
// bytes round.
absl::Status add_open_row(const BenchContext& context);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_METADATA_ROWS_H_

// The rows of the table that are about encrypted images: aes-xts-plain64, as
// LUKS volumes and within qcow2.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_ENCRYPTION_ROWS_H_
#define SPINDLE_BENCHMARKS_ENCRYPTION_ROWS_H_

#include "absl/status/status.h"
#include "benchmarks/bench_settings.h"

namespace spindle::benchmarks {

// On tmpfs: copies of a whole disk out of and into encrypted images, beside
// qemu-img convert; and reads of 64 KiB at depth 32, beside nbdcopy from
// qemu-nbd with the same secret.
absl::Status add_encryption_rows(const BenchContext& context);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_ENCRYPTION_ROWS_H_

// The rows of the table that are about writes.
//
// Thread safety: none; one thread measures.
#ifndef SPINDLE_BENCHMARKS_WRITE_ROWS_H_
#define SPINDLE_BENCHMARKS_WRITE_ROWS_H_

#include "absl/status/status.h"
#include "benchmarks/bench_images.h"
#include "benchmarks/bench_settings.h"

namespace spindle::benchmarks {

// 4 KiB overwrites at depth 32, beside qemu-img bench on tmpfs and beside bare
// pwritev on ext4.
absl::Status add_overwrite_rows(const BenchContext& context,
                                const FilledImages& images, bool on_tmpfs);

// 4 KiB writes to a fresh image on tmpfs at depth 32: one to each cluster, and
// all in order.
absl::Status add_first_write_rows(const BenchContext& context);

// How many syncs a flush costs, of one flusher and of 16.
absl::Status add_sync_rows(const BenchContext& context);

// Of the speed of reads, what is left beside a stream of allocating writes that
// are flushed one by one; ours and bare system calls, on ext4.
absl::Status add_flush_rows(const BenchContext& context,
                            const FilledImages& images);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_WRITE_ROWS_H_

// How much reads suffer from writes beside them that are flushed one by one.
//
// Thread safety: none; one thread measures, and starts another.
#ifndef SPINDLE_BENCHMARKS_BESIDE_H_
#define SPINDLE_BENCHMARKS_BESIDE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "benchmarks/bench_images.h"

namespace spindle::benchmarks {

// 4 KiB reads a second while a thread writes 4 KiB to a new cluster and
// flushes, again and again, as a part of those without it.  Makes `image`, and
// fills half of it.  Each of the two is measured for `span`.
absl::StatusOr<double> kept_beside_flushes(const FreshImage& image,
                                           absl::Duration span);

// The same with preadv on `path`, and pwrite to a new place of another file
// beside it and fdatasync.
absl::StatusOr<double> kept_beside_syncs(const std::string& path,
                                         absl::Duration span);

}  // namespace spindle::benchmarks

#endif  // SPINDLE_BENCHMARKS_BESIDE_H_

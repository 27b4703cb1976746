// Moving what overlays have into an image further down their chain.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_ENGINE_JOBS_COMMIT_H_
#define SPINDLE_ENGINE_JOBS_COMMIT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/jobs/job_options.h"

namespace spindle {

struct CommitOptions {
  JobOptions job;
  // 0: as fast as it goes.
  uint64_t bytes_per_second = 0;
};

// Writes what the first `layers` images of the chain that `top` is the topmost
// of have into `base`, the one below them, and flushes it; `base` becomes as
// long as `top`, if it is shorter.  The overlays stay as they are: they read
// the same afterwards.
// REQUIRES: layers >= 1; `base` can be written to.
absl::Status commit_layers(BlockDevice& top, BlockDevice& base, int layers,
                           const CommitOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_COMMIT_H_

// Making an overlay independent of what its new backing file does not have.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_ENGINE_JOBS_REBASE_H_
#define SPINDLE_ENGINE_JOBS_REBASE_H_

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/jobs/job_options.h"

namespace spindle {

struct RebaseOptions {
  JobOptions job;
  // The new backing file is so many layers below the old one in its chain: what
  // none of those above it has is in both.  0: it is another one.
  int layers_above_new = 0;
};

// Writes into `overlay` what it does not have itself and what its old backing
// file and the new one do not have in common; afterwards it reads the same over
// either.  Reads are parallel, writes in order.  Either backing device may be
// null: nothing, which reads as zeroes.
absl::Status prepare_rebase(BlockDevice& overlay, BlockDevice* old_backing,
                            BlockDevice* new_backing,
                            const RebaseOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_REBASE_H_

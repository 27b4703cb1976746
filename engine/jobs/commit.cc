#include "engine/jobs/commit.h"

#include "engine/jobs/copy.h"
#include "engine/jobs/sector_status.h"

namespace spindle {

absl::Status commit_layers(BlockDevice& top, BlockDevice& base, int layers,
                           const CommitOptions& options) {
  const uint64_t length = whole_sectors_bytes(top);
  if (whole_sectors_bytes(base) < length) {
    absl::Status status = base.set_length(length);
    if (!status.ok()) return status;
  }
  CopyOptions copy;
  copy.job = options.job;
  copy.bytes_per_second = options.bytes_per_second;
  copy.target_reads_as_zeroes = false;
  copy.source_layers = layers;
  copy.find_zeroes = false;
  absl::Status status = copy_image(top, base, copy);
  return status.ok() ? base.flush() : status;
}

}  // namespace spindle

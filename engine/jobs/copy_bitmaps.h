// The persistent bitmaps of an image, copied to another one of the same length
// beside its content: which ones there are, empty ones in the target before the
// content is copied, their bits after it.
//
// Thread safety: functions without state.
#ifndef SPINDLE_ENGINE_JOBS_COPY_BITMAPS_H_
#define SPINDLE_ENGINE_JOBS_COPY_BITMAPS_H_

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/dirty_bitmap.h"
#include "engine/format.h"

namespace spindle {

// Those of the source that can be copied; the others are an error, or are left
// out with a warning.
absl::StatusOr<std::vector<DirtyBitmapInfo>> find_bitmaps(BlockDriver& source,
                                                          bool skip_broken,
                                                          const LogSink& log);

// Empty ones, which do not follow what is copied.
absl::Status add_bitmaps(const std::vector<DirtyBitmapInfo>& bitmaps,
                         BlockDriver& target);

absl::Status fill_bitmaps(const std::vector<DirtyBitmapInfo>& bitmaps,
                          BlockDriver& source, BlockDriver& target);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_COPY_BITMAPS_H_

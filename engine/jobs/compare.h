// Comparing what a guest sees of two images.
//
// Runs of both that read as zeroes are not read.  Windows of the images are
// compared in parallel; what is found is what comes first.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_ENGINE_JOBS_COMPARE_H_
#define SPINDLE_ENGINE_JOBS_COMPARE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/jobs/job_options.h"

namespace spindle {

struct CompareOptions {
  JobOptions job;
  // Also what is allocated must be the same, and the length.
  bool strict = false;
};

struct CompareResult {
  enum class Kind {
    kIdentical,
    kLengthMismatch,  // strict only
    kStatusMismatch,  // strict only
    kContentMismatch,
    kStatusFailed,  // of image `failed_image`
    kReadFailed,
    kCancelled,
  };
  Kind kind = Kind::kIdentical;
  // Of the mismatch: the first sector that is not the same.
  uint64_t offset = 0;
  // What is longer in one of them was reached: up to there they are the same.
  bool reached_longer_part = false;
  int failed_image = 0;  // 0 or 1
  absl::Status failure;
};

CompareResult compare_images(BlockDevice& first, BlockDevice& second,
                             const CompareOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_COMPARE_H_

// Copying a range of one image to the start of another, by the byte.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_ENGINE_JOBS_COPY_BYTES_H_
#define SPINDLE_ENGINE_JOBS_COPY_BYTES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "engine/block_device.h"
#include "engine/jobs/job_options.h"
#include "engine/sector.h"

namespace spindle {

// Everything is written, zeroes too, in order; the next piece is read while the
// one before it is written.  What of the range lies behind the last byte of the
// source is zero.
// Errors: those of the devices; qemu_words() says whether it was the input's or
// the output's.
absl::Status copy_bytes(BlockDevice& source, ByteRange range,
                        BlockDevice& target, const JobOptions& options);

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_COPY_BYTES_H_

// The memory that jobs read into and write from.
//
// Page-aligned: the kernel copies about a third faster to and from it, and
// neither O_DIRECT nor a driver with an alignment of its own has to bounce.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_JOBS_JOB_BUFFER_H_
#define SPINDLE_ENGINE_JOBS_JOB_BUFFER_H_

#include <cstddef>

#include "engine/aligned_buffer.h"

namespace spindle {

constexpr size_t kJobBufferAlignmentBytes = 4096;

// Makes `buffer` one of `size_bytes`, not initialised, unless it is that large.
inline void need_job_buffer(size_t size_bytes, AlignedBuffer* buffer) {
  if (buffer->size() >= size_bytes) return;
  *buffer = AlignedBuffer(size_bytes, kJobBufferAlignmentBytes);
}

}  // namespace spindle

#endif  // SPINDLE_ENGINE_JOBS_JOB_BUFFER_H_

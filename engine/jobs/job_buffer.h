// The memory that jobs read into and write from.
//
// Page-aligned: the kernel copies to and from it much faster than to and from
// what std::vector gives, and O_DIRECT takes it as it is.
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

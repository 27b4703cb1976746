// AlignedBuffer: memory at an alignment; AlignedBufferPool: a few of them, kept
// for the next user.
//
// What bounces (memory that a driver cannot take, requests that are not aligned
// to its sectors) needs such memory for a moment, again and again.  A Lease
// owns its buffer and gives it back to the pool, which must outlive it.
//
// Thread safety: AlignedBufferPool from any thread; an AlignedBuffer or a Lease
// is used by one thread at a time.
#ifndef SPINDLE_ENGINE_ALIGNED_BUFFER_H_
#define SPINDLE_ENGINE_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

// Movable; empty after it was moved from.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // The memory is not initialised.  REQUIRES: alignment is a power of two.
  AlignedBuffer(size_t size_bytes, size_t alignment_bytes);
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  ~AlignedBuffer();

  uint8_t* data() const { return data_; }
  size_t size() const { return size_bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_bytes_ = 0;
  size_t alignment_bytes_ = 1;
};

class AlignedBufferPool {
 public:
  // A buffer for as long as this lives.
  class Lease {
   public:
    Lease(AlignedBufferPool* pool, AlignedBuffer buffer);
    Lease(Lease&& other) noexcept = default;
    Lease& operator=(Lease&&) = delete;
    ~Lease();

    uint8_t* data() const { return buffer_.data(); }
    // At least what was asked for.
    size_t size() const { return buffer_.size(); }

   private:
    AlignedBufferPool* const pool_;
    AlignedBuffer buffer_;
  };

  // Keeps at most `kept_count` buffers, of at most `kept_size_bytes` each.
  AlignedBufferPool(size_t alignment_bytes, size_t kept_count,
                    size_t kept_size_bytes);
  AlignedBufferPool(const AlignedBufferPool&) = delete;
  AlignedBufferPool& operator=(const AlignedBufferPool&) = delete;

  Lease take(size_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void give_back(AlignedBuffer buffer) ABSL_LOCKS_EXCLUDED(mutex_);

  const size_t alignment_bytes_;
  const size_t kept_count_;
  const size_t kept_size_bytes_;

  // A leaf: nothing is acquired while it is held.
  absl::Mutex mutex_;
  std::vector<AlignedBuffer> kept_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_ALIGNED_BUFFER_H_

// SliceMemory: equal pieces of memory for the slices of one table cache.
//
// Taken from larger blocks: an allocator that aligns each slice by itself needs
// twice the memory.  Pieces that are given back are used again; blocks are
// freed with the whole.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_CLUSTER_SLICE_MEMORY_H_
#define SPINDLE_FORMATS_CLUSTER_SLICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

class SliceMemory {
 public:
  // `slice_bytes` is a power of two.
  explicit SliceMemory(size_t slice_bytes) : slice_bytes_(slice_bytes) {}
  SliceMemory(const SliceMemory&) = delete;
  SliceMemory& operator=(const SliceMemory&) = delete;

  // A piece goes back by itself; it must not outlive the memory.
  struct GiveBack {
    SliceMemory* memory;
    void operator()(uint8_t* piece) const { memory->give_back(piece); }
  };
  using Piece = std::unique_ptr<uint8_t[], GiveBack>;

  // slice_bytes() of any content, aligned to that or to 4096, whichever is
  // less: fit for O_DIRECT.
  Piece take() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t slice_bytes() const { return slice_bytes_; }

 private:
  struct Free {
    void operator()(uint8_t* block) const;
  };

  void give_back(uint8_t* piece) ABSL_LOCKS_EXCLUDED(mutex_);
  void add_block_locked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t slice_bytes_;
  // A leaf: nothing is acquired, and no I/O done, while it is held.
  absl::Mutex mutex_;
  std::vector<std::unique_ptr<uint8_t[], Free>> blocks_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint8_t*> free_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_SLICE_MEMORY_H_

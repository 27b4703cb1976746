#include "formats/cluster/slice_memory.h"

#include <algorithm>
#include <new>

namespace spindle {
namespace {

constexpr std::align_val_t kAlignment{4096};
// Blocks grow from the first to the second, so that a small image's cache stays
// small.
constexpr size_t kFirstBlockBytes = size_t{16} << 10;
constexpr size_t kMostBlockBytes = size_t{256} << 10;

}  // namespace

void SliceMemory::Free::operator()(uint8_t* block) const {
  operator delete[](block, kAlignment);
}

void SliceMemory::add_block_locked() {
  const size_t wanted = kFirstBlockBytes << std::min<size_t>(blocks_.size(), 8);
  const size_t pieces =
      std::max<size_t>(std::min(wanted, kMostBlockBytes) / slice_bytes_, 1);
  blocks_.emplace_back(new (kAlignment) uint8_t[pieces * slice_bytes_]);
  // As many as can ever come back: giving back never allocates.
  free_.reserve(free_.capacity() + pieces);
  for (size_t i = pieces; i-- > 0;)
    free_.push_back(blocks_.back().get() + i * slice_bytes_);
}

SliceMemory::Piece SliceMemory::take() {
  absl::MutexLock lock(&mutex_);
  if (free_.empty()) add_block_locked();
  uint8_t* const piece = free_.back();
  free_.pop_back();
  return Piece(piece, GiveBack{this});
}

void SliceMemory::give_back(uint8_t* piece) {
  absl::MutexLock lock(&mutex_);
  free_.push_back(piece);
}

}  // namespace spindle

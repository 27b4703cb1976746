#include "engine/aligned_buffer.h"

#include <algorithm>
#include <new>
#include <utility>

namespace spindle {

AlignedBuffer::AlignedBuffer(size_t size_bytes, size_t alignment_bytes)
    : data_(static_cast<uint8_t*>(
          ::operator new(size_bytes, std::align_val_t{alignment_bytes}))),
      size_bytes_(size_bytes),
      alignment_bytes_(alignment_bytes) {}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      alignment_bytes_(other.alignment_bytes_) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(alignment_bytes_, other.alignment_bytes_);
  return *this;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr)
    ::operator delete(data_, std::align_val_t{alignment_bytes_});
}

AlignedBufferPool::Lease::Lease(AlignedBufferPool* pool, AlignedBuffer buffer)
    : pool_(pool), buffer_(std::move(buffer)) {}

AlignedBufferPool::Lease::~Lease() {
  if (buffer_.data() != nullptr) pool_->give_back(std::move(buffer_));
}

AlignedBufferPool::AlignedBufferPool(size_t alignment_bytes, size_t kept_count,
                                     size_t kept_size_bytes)
    : alignment_bytes_(alignment_bytes),
      kept_count_(kept_count),
      kept_size_bytes_(kept_size_bytes) {
  absl::MutexLock lock(&mutex_);
  kept_.reserve(kept_count_);
}

AlignedBufferPool::Lease AlignedBufferPool::take(size_t size_bytes) {
  {
    absl::MutexLock lock(&mutex_);
    const auto fits = [size_bytes](const AlignedBuffer& b) {
      return b.size() >= size_bytes;
    };
    // From the back: what was given back last is likely still cached.
    const auto found = std::find_if(kept_.rbegin(), kept_.rend(), fits);
    if (found != kept_.rend()) {
      std::swap(*found, kept_.back());
      AlignedBuffer buffer = std::move(kept_.back());
      kept_.pop_back();
      return Lease(this, std::move(buffer));
    }
  }
  return Lease(this, AlignedBuffer(size_bytes, alignment_bytes_));
}

void AlignedBufferPool::give_back(AlignedBuffer buffer) {
  if (buffer.size() > kept_size_bytes_) return;
  absl::MutexLock lock(&mutex_);
  if (kept_.size() < kept_count_) {
    kept_.push_back(std::move(buffer));
    return;
  }
  // Larger buffers serve more users.
  const auto smaller = [](const AlignedBuffer& a, const AlignedBuffer& b) {
    return a.size() < b.size();
  };
  const auto smallest = std::min_element(kept_.begin(), kept_.end(), smaller);
  if (smallest != kept_.end() && smallest->size() < buffer.size())
    std::swap(*smallest, buffer);
}

}  // namespace spindle

#include "engine/io_vector.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/base/macros.h"

namespace spindle {
namespace {

char* advance(void* base, uint64_t bytes) {
  return static_cast<char*>(base) + bytes;
}

bool memory_is_zero(const void* memory, size_t bytes) {
  static constexpr size_t kHead = 16;
  const unsigned char* const from = static_cast<const unsigned char*>(memory);
  for (size_t i = 0; i < std::min(bytes, kHead); ++i) {
    if (from[i] != 0) return false;
  }
  // Each byte equals the one sixteen before it, and the first sixteen are zero.
  return bytes <= kHead || std::memcmp(from, from + kHead, bytes - kHead) == 0;
}

}  // namespace

// One allocation: this header, the segments, and where in the whole list each
// of them starts (so that a slice finds its place by binary search).
struct IoVector::SharedBlock {
  std::atomic<size_t> references;
  size_t count;

  iovec* segments() { return reinterpret_cast<iovec*>(this + 1); }
  uint64_t* starts() { return reinterpret_cast<uint64_t*>(segments() + count); }

  static SharedBlock* create(size_t count) {
    static_assert(sizeof(SharedBlock) % alignof(iovec) == 0);
    static_assert(sizeof(iovec) % alignof(uint64_t) == 0);
    void* const memory = ::operator new(
        sizeof(SharedBlock) + count * (sizeof(iovec) + sizeof(uint64_t)));
    return new (memory) SharedBlock{{1}, count};
  }
  void add_reference() { references.fetch_add(1, std::memory_order_relaxed); }
  void drop_reference() {
    if (references.fetch_sub(1, std::memory_order_acq_rel) == 1)
      ::operator delete(this);
  }
};

IoVector::IoVector(void* base, size_t length_bytes) {
  if (length_bytes == 0) return;
  length_bytes_ = length_bytes;
  segment_count_ = 1;
  inline_[0] = iovec{base, length_bytes};
}

IoVector::IoVector(absl::Span<const iovec> segments) { assign(segments); }

IoVector::IoVector(std::initializer_list<iovec> segments) { assign(segments); }

IoVector::IoVector(const IoVector& other) { copy_view(other); }

IoVector& IoVector::operator=(const IoVector& other) {
  if (this == &other) return *this;
  release();
  copy_view(other);
  return *this;
}

IoVector::IoVector(IoVector&& other) noexcept { take_view(&other); }

IoVector& IoVector::operator=(IoVector&& other) noexcept {
  if (this == &other) return *this;
  release();
  take_view(&other);
  return *this;
}

IoVector::~IoVector() {
  if (block_ != nullptr) block_->drop_reference();
}

iovec IoVector::segment(size_t i) const {
  ABSL_ASSERT(i < segment_count_);
  if (block_ == nullptr) return inline_[i];
  iovec result = raw_segments()[i];
  const uint64_t start = view_start(i);
  if (i == 0) {
    result.iov_base = advance(result.iov_base, first_skip_);
    result.iov_len -= first_skip_;
  }
  result.iov_len = std::min<uint64_t>(result.iov_len, length_bytes_ - start);
  return result;
}

IoVector IoVector::slice(uint64_t offset_bytes, uint64_t length_bytes) const {
  ABSL_ASSERT(offset_bytes <= length_bytes_ &&
              length_bytes <= length_bytes_ - offset_bytes);
  IoVector result;
  if (length_bytes == 0) return result;
  const Position first = find(offset_bytes);
  const Position last = find(offset_bytes + length_bytes - 1);
  result.length_bytes_ = length_bytes;
  result.segment_count_ = last.segment - first.segment + 1;
  if (result.segment_count_ > kInlineSegments) {
    block_->add_reference();
    result.block_ = block_;
    result.first_segment_ = first_segment_ + first.segment;
    result.first_skip_ = first.skip + (first.segment == 0 ? first_skip_ : 0);
    return result;
  }
  export_from(first, length_bytes,
              absl::MakeSpan(result.inline_.data(), result.segment_count_));
  return result;
}

size_t IoVector::export_segments(uint64_t offset_bytes, uint64_t max_bytes,
                                 absl::Span<iovec> out) const {
  ABSL_ASSERT(offset_bytes <= length_bytes_);
  const uint64_t bytes = std::min(max_bytes, length_bytes_ - offset_bytes);
  if (bytes == 0) return 0;
  return export_from(find(offset_bytes), bytes, out);
}

void IoVector::append(const IoVector& tail) {
  *this = concatenate(*this, tail);
}

IoVector IoVector::concatenate(const IoVector& head, const IoVector& tail) {
  if (tail.empty()) return head;
  if (head.empty()) return tail;
  IoVector result;
  const size_t count = head.segment_count_ + tail.segment_count_;
  iovec* const segments = result.prepare(count);
  head.export_segments(0, head.length_bytes_,
                       absl::MakeSpan(segments, head.segment_count_));
  tail.export_segments(
      0, tail.length_bytes_,
      absl::MakeSpan(segments + head.segment_count_, tail.segment_count_));
  result.finish();
  return result;
}

void IoVector::copy_to(uint64_t offset_bytes, void* linear,
                       size_t bytes) const {
  char* to = static_cast<char*>(linear);
  for_each_piece(offset_bytes, bytes, [&to](const iovec& piece) {
    std::memcpy(to, piece.iov_base, piece.iov_len);
    to += piece.iov_len;
    return true;
  });
}

void IoVector::copy_from(uint64_t offset_bytes, const void* linear,
                         size_t bytes) const {
  const char* from = static_cast<const char*>(linear);
  for_each_piece(offset_bytes, bytes, [&from](const iovec& piece) {
    std::memcpy(piece.iov_base, from, piece.iov_len);
    from += piece.iov_len;
    return true;
  });
}

void IoVector::fill(uint8_t value) const { fill(0, length_bytes_, value); }

void IoVector::fill(uint64_t offset_bytes, uint64_t bytes,
                    uint8_t value) const {
  for_each_piece(offset_bytes, bytes, [value](const iovec& piece) {
    std::memset(piece.iov_base, value, piece.iov_len);
    return true;
  });
}

bool IoVector::is_zero() const {
  return for_each_piece(0, length_bytes_, [](const iovec& piece) {
    return memory_is_zero(piece.iov_base, piece.iov_len);
  });
}

bool IoVector::is_aligned(size_t alignment) const {
  const uintptr_t mask = alignment - 1;
  return for_each_piece(0, length_bytes_, [mask](const iovec& piece) {
    return ((reinterpret_cast<uintptr_t>(piece.iov_base) | piece.iov_len) &
            mask) == 0;
  });
}

const iovec* IoVector::raw_segments() const {
  return block_ == nullptr ? inline_.data()
                           : block_->segments() + first_segment_;
}

uint64_t IoVector::view_start(size_t segment) const {
  if (segment == 0) return 0;
  const uint64_t* const starts = block_->starts();
  return starts[first_segment_ + segment] - starts[first_segment_] -
         first_skip_;
}

IoVector::Position IoVector::find(uint64_t offset_bytes) const {
  if (block_ == nullptr) {
    size_t i = 0;
    while (offset_bytes >= inline_[i].iov_len)
      offset_bytes -= inline_[i++].iov_len;
    return {i, offset_bytes};
  }
  const uint64_t* const starts = block_->starts() + first_segment_;
  const uint64_t target = starts[0] + first_skip_ + offset_bytes;
  const uint64_t* const after =
      std::upper_bound(starts + 1, starts + segment_count_, target);
  const size_t i = static_cast<size_t>(after - starts) - 1;
  return {i, i == 0 ? offset_bytes : target - starts[i]};
}

size_t IoVector::export_from(Position from, uint64_t bytes,
                             absl::Span<iovec> out) const {
  const iovec* const segments = raw_segments();
  const size_t limit = std::min(out.size(), segment_count_ - from.segment);
  uint64_t skip =
      from.skip + (block_ != nullptr && from.segment == 0 ? first_skip_ : 0);
  size_t count = 0;
  while (count < limit && bytes > 0) {
    const iovec& segment = segments[from.segment + count];
    const uint64_t taken = std::min<uint64_t>(segment.iov_len - skip, bytes);
    out[count++] = iovec{advance(segment.iov_base, skip), taken};
    bytes -= taken;
    skip = 0;
  }
  return count;
}

template <typename Visitor>
bool IoVector::for_each_piece(uint64_t offset_bytes, uint64_t bytes,
                              Visitor visit) const {
  ABSL_ASSERT(offset_bytes <= length_bytes_ &&
              bytes <= length_bytes_ - offset_bytes);
  if (bytes == 0) return true;
  Position at = find(offset_bytes);
  while (bytes > 0) {
    iovec piece;
    export_from(at, bytes, absl::MakeSpan(&piece, 1));
    if (!visit(piece)) return false;
    bytes -= piece.iov_len;
    at = Position{at.segment + 1, 0};
  }
  return true;
}

// The two halves of building a list: room for exactly `count` segments, then,
// once they are filled in, what follows from them.
iovec* IoVector::prepare(size_t count) {
  segment_count_ = count;
  if (count <= kInlineSegments) return inline_.data();
  block_ = SharedBlock::create(count);
  return block_->segments();
}

void IoVector::finish() {
  const iovec* const segments = raw_segments();
  for (size_t i = 0; i < segment_count_; ++i) {
    if (block_ != nullptr) block_->starts()[i] = length_bytes_;
    length_bytes_ += segments[i].iov_len;
  }
}

void IoVector::assign(absl::Span<const iovec> segments) {
  const auto is_used = [](const iovec& segment) { return segment.iov_len > 0; };
  const size_t count = static_cast<size_t>(
      std::count_if(segments.begin(), segments.end(), is_used));
  std::copy_if(segments.begin(), segments.end(), prepare(count), is_used);
  finish();
}

// REQUIRES: *this holds no block.
void IoVector::copy_view(const IoVector& other) {
  length_bytes_ = other.length_bytes_;
  segment_count_ = other.segment_count_;
  block_ = other.block_;
  first_segment_ = other.first_segment_;
  first_skip_ = other.first_skip_;
  if (block_ != nullptr) {
    block_->add_reference();
  } else {
    std::copy_n(other.inline_.data(), segment_count_, inline_.data());
  }
}

// REQUIRES: *this holds no block.
void IoVector::take_view(IoVector* other) {
  length_bytes_ = other->length_bytes_;
  segment_count_ = other->segment_count_;
  block_ = other->block_;
  first_segment_ = other->first_segment_;
  first_skip_ = other->first_skip_;
  if (block_ == nullptr)
    std::copy_n(other->inline_.data(), segment_count_, inline_.data());
  other->block_ = nullptr;
  other->release();
}

void IoVector::release() {
  if (block_ != nullptr) block_->drop_reference();
  length_bytes_ = 0;
  segment_count_ = 0;
  block_ = nullptr;
  first_segment_ = 0;
  first_skip_ = 0;
}

}  // namespace spindle

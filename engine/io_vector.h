// IoVector: a cheap view over the scattered memory of one request.
//
// An IoVector names memory, it does not own it: whoever makes one keeps the
// segments' memory alive until the request has completed.  The list of
// segments itself is owned: up to kInlineSegments live inside the object, so
// that building, copying and slicing a short vector allocates nothing; longer
// lists live in one immutable, reference-counted block that slices share.
//
// Thread safety: a value.  Distinct IoVectors may be used from distinct
// threads even where they share a block; the memory that they name is the
// caller's business.
#ifndef SPINDLE_ENGINE_IO_VECTOR_H_
#define SPINDLE_ENGINE_IO_VECTOR_H_

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "absl/types/span.h"

namespace spindle {

class IoVector {
 public:
  static constexpr size_t kInlineSegments = 16;

  // Not defaulted: IoVector() must not clear inline_.
  IoVector() {}
  // One segment.
  IoVector(void* base, size_t length_bytes);
  // Segments in order; those of length 0 are dropped.
  explicit IoVector(absl::Span<const iovec> segments);
  IoVector(std::initializer_list<iovec> segments);

  IoVector(const IoVector& other);
  IoVector& operator=(const IoVector& other);
  IoVector(IoVector&& other) noexcept;
  IoVector& operator=(IoVector&& other) noexcept;
  ~IoVector();

  // The number of bytes in all segments together.
  uint64_t length_bytes() const { return length_bytes_; }
  bool empty() const { return length_bytes_ == 0; }

  size_t segment_count() const { return segment_count_; }
  // The i-th segment, already trimmed to this view.
  // REQUIRES: i < segment_count().
  iovec segment(size_t i) const;

  // The bytes [offset, offset + length) of this vector; shares storage.
  // REQUIRES: offset + length <= length_bytes().
  IoVector slice(uint64_t offset_bytes, uint64_t length_bytes) const;

  // Writes up to out.size() segments that begin at `offset_bytes` into `out`,
  // stopping at `max_bytes`; returns how many it wrote.  This is how a driver
  // fills the array of a preadv call, piece by piece.
  // REQUIRES: offset_bytes <= length_bytes().
  size_t export_segments(uint64_t offset_bytes, uint64_t max_bytes,
                         absl::Span<iovec> out) const;

  // Appends `tail` behind this vector's own segments.
  void append(const IoVector& tail);
  static IoVector concatenate(const IoVector& head, const IoVector& tail);

  // Copies between this vector from `offset_bytes` on and a linear buffer.
  // REQUIRES: offset_bytes + bytes <= length_bytes().
  void copy_to(uint64_t offset_bytes, void* linear, size_t bytes) const;
  void copy_from(uint64_t offset_bytes, const void* linear, size_t bytes) const;
  // Sets every byte / `bytes` bytes from `offset_bytes` on to `value`.
  void fill(uint8_t value) const;
  void fill(uint64_t offset_bytes, uint64_t bytes, uint8_t value) const;

  // True if every byte is zero.
  bool is_zero() const;
  // True if every segment's address and length are multiples of `alignment`, a
  // power of two.
  bool is_aligned(size_t alignment) const;

 private:
  struct SharedBlock;

  // A byte of this view: in its segment-th segment, `skip` bytes into what the
  // view shows of it.
  struct Position {
    size_t segment;
    uint64_t skip;
  };

  const iovec* raw_segments() const;
  // REQUIRES: block_ != nullptr or segment == 0.
  uint64_t view_start(size_t segment) const;
  // REQUIRES: offset_bytes < length_bytes().
  Position find(uint64_t offset_bytes) const;
  size_t export_from(Position from, uint64_t bytes,
                     absl::Span<iovec> out) const;
  // Stops, and returns false, when `visit` returns false for a piece.
  template <typename Visitor>
  bool for_each_piece(uint64_t offset_bytes, uint64_t bytes,
                      Visitor visit) const;

  iovec* prepare(size_t count);
  void finish();
  void assign(absl::Span<const iovec> segments);
  void copy_view(const IoVector& other);
  void take_view(IoVector* other);
  void release();

  // Invariant: block_ == nullptr and the first segment_count_ of inline_ are
  // the trimmed segments, or block_ holds a reference and the view is
  // segment_count_ of its segments from first_segment_ on, the first of which
  // is entered at first_skip_ and the last of which is left so that the total
  // is length_bytes_.
  uint64_t length_bytes_ = 0;
  size_t segment_count_ = 0;
  SharedBlock* block_ = nullptr;
  size_t first_segment_ = 0;
  size_t first_skip_ = 0;
  std::array<iovec, kInlineSegments>
      inline_;  // only the first segment_count_ are set
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IO_VECTOR_H_

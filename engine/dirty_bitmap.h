// DirtyBitmap: which parts of a disk may have changed, one bit for each granule
// (a power of two of bytes), and DirtyRecorder: the bitmaps that follow the
// writes to a disk.
//
// Bits live in chunks that come into being when the first bit in them is set,
// so a bitmap of a large disk costs little as long as little is dirty.
//
// Thread safety: set() and what only reads, from any thread, without locks: a
// bit is set by one atomic operation, and by none where it is set already.
// What changes a bitmap otherwise (clear, merge, resize, load_...) is for one
// thread, while nobody else uses it.
#ifndef SPINDLE_ENGINE_DIRTY_BITMAP_H_
#define SPINDLE_ENGINE_DIRTY_BITMAP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "engine/sector.h"

namespace spindle {

// What is known of a bitmap that an image keeps.
struct DirtyBitmapInfo {
  std::string name;
  uint64_t granularity_bytes = 0;
  // Follows writes.
  bool enabled = false;
  // Somebody wrote to the image and did not come to keep the bits, or what they
  // mean is not known here: the bitmap can only be removed.
  bool inconsistent = false;
  // Of the granules that are dirty, whole ones; 0 if inconsistent.
  uint64_t dirty_bytes = 0;
};

// What to make a new bitmap of.
struct NewDirtyBitmap {
  std::string name;
  // A power of two; 0: the image's choice.
  uint64_t granularity_bytes = 0;
  bool enabled = true;
};

class DirtyBitmap {
 public:
  static constexpr uint64_t kMinGranularityBytes = 512;
  static constexpr uint64_t kMaxGranularityBytes = uint64_t{1} << 31;

  // REQUIRES: a granularity between those two, a power of two.
  DirtyBitmap(uint64_t length_bytes, uint64_t granularity_bytes);
  ~DirtyBitmap();
  DirtyBitmap(const DirtyBitmap&) = delete;
  DirtyBitmap& operator=(const DirtyBitmap&) = delete;

  // Of the disk.
  uint64_t length_bytes() const { return length_bytes_; }
  uint64_t granularity_bytes() const { return uint64_t{1} << granule_bits_; }
  // Bits: the last granule may reach beyond the end of the disk.
  uint64_t granule_count() const { return granules_; }

  // Makes dirty every granule that `range` touches; what lies beyond the end of
  // the disk is ignored.
  void set(ByteRange range);

  // ---- Only reads -----------------------------------------------------------

  // REQUIRES: offset < length_bytes().
  bool is_dirty(uint64_t offset) const;
  // Whole granules.
  uint64_t dirty_bytes() const;

  struct Run {
    ByteRange range;
    bool dirty = false;
  };
  // What is equally dirty from `offset` on, up to the end of the disk.
  // REQUIRES: offset < length_bytes().
  Run run_at(uint64_t offset) const;

  // The bits from granule `first` on, eight to a byte, the lowest bit first;
  // zeroes beyond the last one.  True if any is set.
  // REQUIRES: `first` and the bits that `bytes` hold are multiples of 64.
  bool store_bits(uint64_t first, absl::Span<uint8_t> bytes) const;
  bool any_set(uint64_t first, uint64_t count) const;

  // Bits or the length changed since mark_unchanged().
  bool changed() const { return changed_.load(std::memory_order_relaxed); }

  // ---- For one thread -------------------------------------------------------

  void clear();
  // Makes dirty what is dirty in `source`, whose granularity may be another.
  // Errors: kInvalidArgument if its disk has another length.
  absl::Status merge(const DirtyBitmap& source);
  // New parts are clean.
  void resize(uint64_t length_bytes);
  // Makes dirty what is set in `bytes`, as for store_bits().
  void load_bits(uint64_t first, absl::Span<const uint8_t> bytes);
  // The same with all bits set.
  void load_ones(uint64_t first, uint64_t count);
  void mark_unchanged() { changed_.store(false, std::memory_order_relaxed); }

 private:
  static constexpr uint32_t kWordBits = 64;
  static constexpr uint64_t kChunkWords = 512;
  static constexpr uint64_t kChunkGranules = kChunkWords * kWordBits;
  struct Chunk {
    std::atomic<uint64_t> words[kChunkWords];
  };
  // Stands for a chunk with all bits set; nobody writes to it.
  static Chunk* all_ones();

  uint64_t chunk_count() const { return chunks_.size(); }
  // The word that begins with granule `first`, a multiple of 64.
  uint64_t word_at(uint64_t first) const;
  // The bits of that word that are granules of the disk.
  uint64_t valid_bits(uint64_t first) const;
  // Null where every bit is set.
  Chunk* chunk_for_setting(uint64_t index);
  // A chunk of its own in place of all_ones().
  Chunk* own_chunk(uint64_t index);
  void set_word(uint64_t first, uint64_t bits);
  // Sets all bits of a chunk that has none, or has all; else false.
  bool fill_clean_chunk(uint64_t index);
  void set_granules(uint64_t first, uint64_t end);
  void free_chunk(uint64_t index);
  void note_change() {
    if (!changed()) changed_.store(true, std::memory_order_relaxed);
  }

  const uint32_t granule_bits_;
  uint64_t length_bytes_ = 0;
  uint64_t granules_ = 0;
  std::atomic<bool> changed_{false};
  // Null: no bit is set.
  std::vector<std::atomic<Chunk*>> chunks_;
};

// Thread safety: Recording, from any thread; set_bitmaps() while there is none.
class DirtyRecorder {
 public:
  // Follows these from now on.
  void set_bitmaps(std::vector<std::shared_ptr<DirtyBitmap>> bitmaps);

  // A change of a range of the disk under way: the range becomes dirty at its
  // end, whether it succeeded or not.  Where no bitmap follows it costs one
  // relaxed load.
  class Recording {
   public:
    Recording(DirtyRecorder* recorder, ByteRange range)
        : recorder_(*recorder), range_(range) {}
    ~Recording() {
      if (ABSL_PREDICT_FALSE(
              recorder_.active_.load(std::memory_order_relaxed))) {
        recorder_.record(range_);
      }
    }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    DirtyRecorder& recorder_;
    const ByteRange range_;
  };

 private:
  void record(ByteRange range);

  std::atomic<bool> active_{false};
  // Changed by set_bitmaps() only.
  std::vector<std::shared_ptr<DirtyBitmap>> bitmaps_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_DIRTY_BITMAP_H_

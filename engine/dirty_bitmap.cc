#include "engine/dirty_bitmap.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

constexpr uint64_t kAllOnes = ~uint64_t{0};

// Bits [begin, end) of a word.  REQUIRES: begin < end <= 64.
constexpr uint64_t bits_between(uint64_t begin, uint64_t end) {
  return (kAllOnes << begin) & (kAllOnes >> (64 - end));
}

}  // namespace

DirtyBitmap::Chunk* DirtyBitmap::all_ones() {
  static Chunk* const chunk = [] {
    auto* ones = new Chunk;
    for (std::atomic<uint64_t>& word : ones->words) word.store(kAllOnes);
    return ones;
  }();
  return chunk;
}

DirtyBitmap::DirtyBitmap(uint64_t length_bytes, uint64_t granularity_bytes)
    : granule_bits_(
          static_cast<uint32_t>(std::countr_zero(granularity_bytes))) {
  ABSL_ASSERT(is_power_of_two(granularity_bytes) &&
              granularity_bytes >= kMinGranularityBytes &&
              granularity_bytes <= kMaxGranularityBytes);
  resize(length_bytes);
  mark_unchanged();
}

DirtyBitmap::~DirtyBitmap() {
  for (uint64_t i = 0; i < chunk_count(); ++i) free_chunk(i);
}

void DirtyBitmap::free_chunk(uint64_t index) {
  Chunk* const chunk =
      chunks_[index].exchange(nullptr, std::memory_order_relaxed);
  if (chunk != all_ones()) delete chunk;
}

// ---- Setting ----------------------------------------------------------------

DirtyBitmap::Chunk* DirtyBitmap::chunk_for_setting(uint64_t index) {
  std::atomic<Chunk*>& place = chunks_[index];
  Chunk* chunk = place.load(std::memory_order_acquire);
  if (chunk == nullptr) {
    // Zeroes.
    auto fresh = std::make_unique<Chunk>();
    if (place.compare_exchange_strong(chunk, fresh.get(),
                                      std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
      return fresh.release();
    }
  }
  return chunk == all_ones() ? nullptr : chunk;
}

DirtyBitmap::Chunk* DirtyBitmap::own_chunk(uint64_t index) {
  if (chunks_[index].load(std::memory_order_relaxed) == all_ones()) {
    auto* const ones = new Chunk;
    for (std::atomic<uint64_t>& word : ones->words)
      word.store(kAllOnes, std::memory_order_relaxed);
    chunks_[index].store(ones, std::memory_order_release);
  }
  return chunk_for_setting(index);
}

void DirtyBitmap::set_word(uint64_t first, uint64_t bits) {
  Chunk* const chunk = chunk_for_setting(first / kChunkGranules);
  if (chunk == nullptr) return;
  std::atomic<uint64_t>& word =
      chunk->words[first % kChunkGranules / kWordBits];
  if ((word.load(std::memory_order_relaxed) & bits) == bits) return;
  word.fetch_or(bits, std::memory_order_relaxed);
  note_change();
}

bool DirtyBitmap::fill_clean_chunk(uint64_t index) {
  Chunk* chunk = nullptr;
  if (!chunks_[index].compare_exchange_strong(chunk, all_ones(),
                                              std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
    return chunk == all_ones();
  }
  note_change();
  return true;
}

void DirtyBitmap::set_granules(uint64_t first, uint64_t end) {
  for (uint64_t at = first; at < end;) {
    if (at % kChunkGranules == 0 && end - at >= kChunkGranules &&
        fill_clean_chunk(at / kChunkGranules)) {
      at += kChunkGranules;
      continue;
    }
    const uint64_t word = align_down(at, kWordBits);
    const uint64_t stop = std::min(end, word + kWordBits);
    set_word(word, bits_between(at - word, stop - word));
    at = stop;
  }
}

void DirtyBitmap::set(ByteRange range) {
  if (range.empty() || range.offset >= length_bytes_) return;
  const uint64_t end = std::min(range.end(), length_bytes_);
  set_granules(range.offset >> granule_bits_, ((end - 1) >> granule_bits_) + 1);
}

// ---- Reading ----------------------------------------------------------------

uint64_t DirtyBitmap::word_at(uint64_t first) const {
  const Chunk* const chunk =
      chunks_[first / kChunkGranules].load(std::memory_order_acquire);
  if (chunk == nullptr) return 0;
  return chunk->words[first % kChunkGranules / kWordBits].load(
      std::memory_order_relaxed);
}

uint64_t DirtyBitmap::valid_bits(uint64_t first) const {
  if (first >= granules_) return 0;
  return bits_between(0, std::min<uint64_t>(granules_ - first, kWordBits));
}

bool DirtyBitmap::is_dirty(uint64_t offset) const {
  const uint64_t granule = offset >> granule_bits_;
  const uint64_t word = align_down(granule, kWordBits);
  return ((word_at(word) >> (granule - word)) & 1) != 0;
}

uint64_t DirtyBitmap::dirty_bytes() const {
  uint64_t count = 0;
  for (uint64_t c = 0; c < chunk_count(); ++c) {
    const Chunk* const chunk = chunks_[c].load(std::memory_order_acquire);
    if (chunk == nullptr) continue;
    if (chunk == all_ones()) {
      count += kChunkGranules;
      continue;
    }
    for (const std::atomic<uint64_t>& word : chunk->words) {
      count += static_cast<uint64_t>(
          std::popcount(word.load(std::memory_order_relaxed)));
    }
  }
  return count << granule_bits_;
}

DirtyBitmap::Run DirtyBitmap::run_at(uint64_t offset) const {
  const bool dirty = is_dirty(offset);
  // The first granule that is otherwise.
  uint64_t at = offset >> granule_bits_;
  while (at < granules_) {
    if (at % kChunkGranules == 0) {
      const Chunk* const chunk =
          chunks_[at / kChunkGranules].load(std::memory_order_acquire);
      if (chunk == (dirty ? all_ones() : nullptr)) {
        at += kChunkGranules;
        continue;
      }
    }
    const uint64_t word = align_down(at, kWordBits);
    uint64_t different = dirty ? ~word_at(word) : word_at(word);
    different &= kAllOnes << (at - word);
    if (different != 0) {
      at = word + static_cast<uint64_t>(std::countr_zero(different));
      break;
    }
    at = word + kWordBits;
  }
  at = std::min(at, granules_);
  const uint64_t end = std::min(at << granule_bits_, length_bytes_);
  return {{offset, end - offset}, dirty};
}

bool DirtyBitmap::any_set(uint64_t first, uint64_t count) const {
  const uint64_t end = std::min(first + count, granules_);
  for (uint64_t at = first; at < end; at += kWordBits) {
    const uint64_t rest = end - at;
    const uint64_t wanted =
        bits_between(0, std::min<uint64_t>(rest, kWordBits));
    if ((word_at(at) & wanted) != 0) return true;
  }
  return false;
}

bool DirtyBitmap::store_bits(uint64_t first, absl::Span<uint8_t> bytes) const {
  uint64_t any = 0;
  for (uint64_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    const uint64_t at = first + i * 8;
    const uint64_t word = at < granules_ ? word_at(at) & valid_bits(at) : 0;
    store_little64(&bytes[i], word);
    any |= word;
  }
  return any != 0;
}

// ---- For one thread ---------------------------------------------------------

void DirtyBitmap::clear() {
  for (uint64_t i = 0; i < chunk_count(); ++i) {
    if (chunks_[i].load(std::memory_order_relaxed) == nullptr) continue;
    free_chunk(i);
    note_change();
  }
}

absl::Status DirtyBitmap::merge(const DirtyBitmap& source) {
  if (source.length_bytes_ != length_bytes_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "Bitmaps are of different sizes (destination size is ", length_bytes_,
        ", source size is ", source.length_bytes_, ") and can't be merged"));
  }
  for (uint64_t at = 0; at < length_bytes_;) {
    const Run run = source.run_at(at);
    if (run.dirty) set(run.range);
    at = run.range.end();
  }
  return absl::OkStatus();
}

void DirtyBitmap::resize(uint64_t length_bytes) {
  if (length_bytes == length_bytes_) return;
  const uint64_t granules = divide_round_up(length_bytes, granularity_bytes());
  const uint64_t chunks = divide_round_up(granules, kChunkGranules);
  for (uint64_t i = chunks; i < chunk_count(); ++i) free_chunk(i);
  std::vector<std::atomic<Chunk*>> kept(chunks);
  for (uint64_t i = 0; i < std::min(chunks, chunk_count()); ++i)
    kept[i].store(chunks_[i].load(std::memory_order_relaxed));
  chunks_ = std::move(kept);
  length_bytes_ = length_bytes;
  granules_ = granules;
  // No bit is set behind the last granule.
  const uint64_t rest = granules % kChunkGranules;
  if (rest != 0 && chunks_.back().load() != nullptr) {
    Chunk* const last = own_chunk(chunks - 1);
    for (uint64_t w = rest / kWordBits; w < kChunkWords; ++w) {
      const uint64_t first = (chunks - 1) * kChunkGranules + w * kWordBits;
      last->words[w].fetch_and(valid_bits(first), std::memory_order_relaxed);
    }
  }
  note_change();
}

void DirtyBitmap::load_bits(uint64_t first, absl::Span<const uint8_t> bytes) {
  for (uint64_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    const uint64_t at = first + i * 8;
    if (at >= granules_) return;
    const uint64_t word = load_little64(&bytes[i]) & valid_bits(at);
    if (word != 0) set_word(at, word);
  }
}

void DirtyBitmap::load_ones(uint64_t first, uint64_t count) {
  const uint64_t end = count < granules_ - std::min(first, granules_)
                           ? first + count
                           : granules_;
  for (uint64_t at = first; at < end;) {
    const uint64_t stop =
        std::min(end, align_down(at, kChunkGranules) + kChunkGranules);
    if (stop - at == kChunkGranules) {
      const uint64_t chunk = at / kChunkGranules;
      free_chunk(chunk);
      chunks_[chunk].store(all_ones(), std::memory_order_release);
      note_change();
    } else {
      set_granules(at, stop);
    }
    at = stop;
  }
}

// ---- DirtyRecorder ----------------------------------------------------------

void DirtyRecorder::set_bitmaps(
    std::vector<std::shared_ptr<DirtyBitmap>> bitmaps) {
  bitmaps_ = std::move(bitmaps);
  active_.store(!bitmaps_.empty(), std::memory_order_relaxed);
}

void DirtyRecorder::record(ByteRange range) {
  for (const std::shared_ptr<DirtyBitmap>& bitmap : bitmaps_)
    bitmap->set(range);
}

}  // namespace spindle

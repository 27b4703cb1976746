#include "formats/cluster/table_cache.h"

#include <algorithm>
#include <cstring>

#include "absl/base/macros.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"

namespace spindle {
namespace {

// What is written back is rounded to this: smaller writes save nothing.
constexpr size_t kDirtyGranularity = 512;

}  // namespace

// ---- Slice -----------------------------------------------------------------

Slice::Slice(TableCache* cache, HostOffset host, SliceMemory* memory)
    : cache_(cache), host_(host), bytes_(memory->take()) {}

uint64_t Slice::load64(size_t index) const {
  return load_big64(&bytes_[index * 8]);
}

void Slice::store64(size_t index, uint64_t value) {
  store_big64(change(index * 8, index * 8 + 8) + index * 8, value);
}

uint8_t* Slice::change(size_t begin, size_t end) {
  mark_dirty(begin, end);
  return bytes_.get();
}

void Slice::mark_dirty(size_t begin, size_t end) {
  begin = align_down(begin, kDirtyGranularity);
  end = align_up(end, kDirtyGranularity);
  if (dirty_begin_ == dirty_end_) {
    dirty_begin_ = begin;
    dirty_end_ = end;
    cache_->note_dirty(this);
    return;
  }
  dirty_begin_ = std::min(dirty_begin_, begin);
  dirty_end_ = std::max(dirty_end_, end);
}

// ---- SliceRef --------------------------------------------------------------

SliceRef& SliceRef::operator=(SliceRef&& other) noexcept {
  if (this != &other) {
    reset();
    slice_ = std::exchange(other.slice_, nullptr);
  }
  return *this;
}

void SliceRef::reset() {
  if (slice_ != nullptr) slice_->users_.fetch_sub(1, std::memory_order_acq_rel);
  slice_ = nullptr;
}

// ---- TableCache ------------------------------------------------------------

TableCache::TableCache(ByteChannel* file, Purpose load_purpose,
                       size_t slice_bytes, uint64_t capacity_bytes)
    : file_(file),
      load_purpose_(load_purpose),
      slice_bytes_(slice_bytes),
      capacity_slices_(std::max<uint64_t>(capacity_bytes / slice_bytes, 1)),
      memory_(slice_bytes) {}

TableCache::~TableCache() = default;

TableCache::Shard& TableCache::shard_of(HostOffset host) {
  // Fibonacci hashing: neighbouring slices land in different shards.
  constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15;
  return shards_[((host.bytes / slice_bytes_) * kMultiplier) >> 61];
}
static_assert(8 == 1 << (64 - 61), "shard_of() yields an index below kShards");

Slice* TableCache::find_ready_locked(Shard* shard, HostOffset host) {
  const auto found = shard->slices.find(host.bytes);
  if (found == shard->slices.end()) return nullptr;
  Slice* const slice = found->second.get();
  if (slice->state_.load(std::memory_order_acquire) != Slice::State::kReady)
    return nullptr;
  // Written only when it changes: the line is shared by all readers.
  if (!slice->referenced_.load(std::memory_order_relaxed)) {
    slice->referenced_.store(true, std::memory_order_relaxed);
  }
  return slice;
}

SliceRef TableCache::try_get(HostOffset host) {
  Shard& shard = shard_of(host);
  MetadataReaderLock lock(&shard.mutex);
  Slice* const slice = find_ready_locked(&shard, host);
  if (slice == nullptr) return SliceRef();
  slice->users_.fetch_add(1, std::memory_order_acq_rel);
  return SliceRef(slice);
}

absl::StatusOr<SliceRef> TableCache::get(HostOffset host) {
  if (SliceRef hit = try_get(host); hit) return hit;

  Shard& shard = shard_of(host);
  SliceRef ref;
  bool loads = false;
  {
    MetadataLock lock(&shard.mutex);
    std::unique_ptr<Slice>& entry = shard.slices[host.bytes];
    if (entry == nullptr) {
      loads = true;
      shard.misses.fetch_add(1, std::memory_order_relaxed);
      // Not through make_unique: the constructor is private.
      entry.reset(new Slice(this, host, &memory_));
      entry->users_.store(1, std::memory_order_relaxed);
      ref = SliceRef(entry.get());
      shard.ring.push_back(entry.get());
      resident_.fetch_add(1, std::memory_order_relaxed);
    } else {
      entry->users_.fetch_add(1, std::memory_order_acq_rel);
      ref = SliceRef(entry.get());
    }
  }
  if (!loads) return wait_until_loaded(&shard, std::move(ref));

  make_room();
  absl::Status status = load(ref.get());
  {
    MetadataLock lock(&shard.mutex);
    if (status.ok()) {
      ref->state_.store(Slice::State::kReady, std::memory_order_release);
    } else {
      // Those who wait hold references; the slice leaves the map with the last
      // of them gone, by eviction, but nobody finds it again before that.
      ref->state_.store(Slice::State::kFailed, std::memory_order_release);
    }
    shard.loaded.SignalAll();
  }
  if (!status.ok()) return status;
  return ref;
}

absl::Status TableCache::load(Slice* slice) {
  const SliceMemory::Piece buffer = memory_.take();
  absl::Status status = file_->read(load_purpose_, buffer.get(), slice_bytes_,
                                    slice->host_.bytes);
  if (!status.ok()) return status;
  MetadataLock lock(&slice->mutex);
  std::memcpy(slice->bytes_.get(), buffer.get(), slice_bytes_);
  return absl::OkStatus();
}

absl::StatusOr<SliceRef> TableCache::wait_until_loaded(Shard* shard,
                                                       SliceRef slice) {
  bool retry = false;
  {
    MetadataLock lock(&shard->mutex);
    while (slice->state_.load(std::memory_order_acquire) ==
           Slice::State::kLoading) {
      shard->mutex.wait(&shard->loaded);
    }
    if (slice->state_.load(std::memory_order_acquire) ==
        Slice::State::kFailed) {
      // The first to see the failure loads again, so that a transient error
      // does not stick; its own error is the one it reports.
      slice->state_.store(Slice::State::kLoading, std::memory_order_release);
      retry = true;
    }
  }
  if (!retry) return slice;
  absl::Status status = load(slice.get());
  {
    MetadataLock lock(&shard->mutex);
    slice->state_.store(
        status.ok() ? Slice::State::kReady : Slice::State::kFailed,
        std::memory_order_release);
    shard->loaded.SignalAll();
  }
  if (!status.ok()) return status;
  return slice;
}

void TableCache::make_room() {
  for (size_t tries = 0; tries < kShards; ++tries) {
    const size_t resident = resident_.load(std::memory_order_relaxed);
    if (resident <= capacity_slices_) return;
    Shard& shard =
        shards_[next_to_evict_.fetch_add(1, std::memory_order_relaxed) %
                kShards];
    MetadataLock lock(&shard.mutex);
    // Those that hold more than their share give first.
    if (shard.ring.size() * kShards >= resident) evict_one_locked(&shard);
  }
}

void TableCache::evict_one_locked(Shard* shard) {
  // Two rounds at most: the first may only take second chances away.  A bounded
  // effort keeps eviction O(1) even if all are in use.
  size_t looks = std::min<size_t>(shard->ring.size() * 2, 64);
  while (looks-- > 0) {
    if (shard->hand >= shard->ring.size()) shard->hand = 0;
    Slice* const slice = shard->ring[shard->hand];
    if (slice->users_.load(std::memory_order_acquire) == 0 &&
        !slice->referenced_.exchange(false, std::memory_order_relaxed)) {
      erase_locked(shard, shard->hand);
      shard->evictions.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    ++shard->hand;
  }
}

void TableCache::erase_locked(Shard* shard, size_t ring_index) {
  Slice* const slice = shard->ring[ring_index];
  shard->ring[ring_index] = shard->ring.back();
  shard->ring.pop_back();
  resident_.fetch_sub(1, std::memory_order_relaxed);
  shard->slices.erase(slice->host_.bytes);
}

void TableCache::discard(HostOffset host, uint64_t table_bytes) {
  for (uint64_t at = 0; at < table_bytes; at += slice_bytes_) {
    const HostOffset slice_host{host.bytes + at};
    Shard& shard = shard_of(slice_host);
    MetadataLock lock(&shard.mutex);
    const auto found = shard.slices.find(slice_host.bytes);
    if (found == shard.slices.end()) continue;
    ABSL_ASSERT(found->second->users_.load(std::memory_order_acquire) == 0);
    const auto in_ring =
        std::find(shard.ring.begin(), shard.ring.end(), found->second.get());
    erase_locked(&shard, static_cast<size_t>(in_ring - shard.ring.begin()));
  }
}

bool TableCache::wants_write_back() const {
  return dirty_count_.load(std::memory_order_relaxed) * 4 >
         capacity_slices_ * 3;
}

bool TableCache::is_overfull() const {
  return dirty_count_.load(std::memory_order_relaxed) > capacity_slices_ * 2;
}

void TableCache::note_dirty(Slice* slice) {
  MetadataLock lock(&dirty_mutex_);
  slice->users_.fetch_add(1, std::memory_order_acq_rel);
  dirty_.push_back(slice);
  dirty_count_.store(dirty_.size(), std::memory_order_relaxed);
}

void TableCache::take_dirty(std::vector<DirtyPiece>* pieces) {
  std::vector<Slice*> taken;
  {
    MetadataLock lock(&dirty_mutex_);
    taken.swap(dirty_);
    dirty_count_.store(0, std::memory_order_relaxed);
  }
  std::sort(taken.begin(), taken.end(),
            [](const Slice* a, const Slice* b) { return a->host_ < b->host_; });
  pieces->reserve(pieces->size() + taken.size());
  for (Slice* slice : taken) {
    DirtyPiece piece;
    piece.slice =
        SliceRef(slice);  // takes over the reference of the dirty list
    MetadataLock lock(&slice->mutex);
    piece.begin = slice->dirty_begin_;
    piece.host = HostOffset{slice->host_.bytes + piece.begin};
    piece.bytes.assign(&slice->bytes_[slice->dirty_begin_],
                       &slice->bytes_[slice->dirty_end_]);
    piece.has_new_mapping = slice->has_new_mapping_;
    slice->dirty_begin_ = slice->dirty_end_ = 0;
    slice->has_new_mapping_ = false;
    pieces->push_back(std::move(piece));
  }
}

void TableCache::restore(std::vector<DirtyPiece>* pieces) {
  for (DirtyPiece& piece : *pieces) {
    Slice* const slice = piece.slice.get();
    MetadataLock lock(&slice->mutex);
    slice->mark_dirty(piece.begin, piece.begin + piece.bytes.size());
    slice->has_new_mapping_ |= piece.has_new_mapping;
  }
  pieces->clear();
}

TableCacheCounters TableCache::counters() const {
  TableCacheCounters sum;
  for (const Shard& shard : shards_) {
    sum.misses += shard.misses.load(std::memory_order_relaxed);
    sum.evictions += shard.evictions.load(std::memory_order_relaxed);
  }
  return sum;
}

}  // namespace spindle

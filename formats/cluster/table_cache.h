// TableCache: slices of L2 tables or refcount blocks, in memory.
//
// A table is cached in slices of a few KiB.  A miss puts a slice into the
// loading state, in which only its own users wait; the file is read without any
// lock.  Eviction is by second chance, O(1), and takes clean unused slices
// only: dirty ones stay until a flush round has written them, and when too many
// are dirty the cache asks for such a round (wants_write_back) instead of
// syncing for one slice.
//
// A flush round takes a snapshot of what is dirty (take_dirty), writes the
// pieces in its own order without stopping readers or writers, and reports each
// piece back as written or not.
//
// Thread safety: every method, from any thread, except where it says otherwise.
// The lock of a slice guards its bytes; ARCHITECTURE.md gives the lock order.
#ifndef SPINDLE_FORMATS_CLUSTER_TABLE_CACHE_H_
#define SPINDLE_FORMATS_CLUSTER_TABLE_CACHE_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/lock_ranks.h"
#include "engine/metadata_mutex.h"
#include "formats/cluster/address.h"
#include "formats/cluster/slice_memory.h"

namespace spindle {

class TableCache;

// One resident slice.  Reach it through a SliceRef, lock `mutex`, read or
// change it, unlock.
class Slice {
 public:
  MetadataMutex mutex ABSL_ACQUIRED_AFTER(lock_ranks::slice)
      ABSL_ACQUIRED_BEFORE(lock_ranks::dirty_slices){LockRank::kSlice};

  HostOffset host() const { return host_; }

  // The bytes as they are on disk.
  const uint8_t* bytes() const ABSL_SHARED_LOCKS_REQUIRED(mutex) {
    return bytes_.get();
  }

  // The index-th 8-byte big-endian entry.
  uint64_t load64(size_t index) const ABSL_SHARED_LOCKS_REQUIRED(mutex);
  void store64(size_t index, uint64_t value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // The slice's first byte, to change [begin, end) of its bytes, which become
  // dirty.
  uint8_t* change(size_t begin, size_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  // From here to the next snapshot the slice holds an entry that must not reach
  // the disk before refcounts and data do (rule 2).
  void note_new_mapping() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    has_new_mapping_ = true;
  }

 private:
  friend class TableCache;
  friend class SliceRef;
  enum class State : uint8_t { kLoading, kReady, kFailed };

  Slice(TableCache* cache, HostOffset host, SliceMemory* memory);

  void mark_dirty(size_t begin, size_t end)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  TableCache* const cache_;
  const HostOffset host_;
  // Pinned in memory while not zero: users, and being dirty, count one each.
  std::atomic<int> users_{0};
  std::atomic<bool> referenced_{true};
  std::atomic<State> state_{State::kLoading};

  SliceMemory::Piece bytes_ ABSL_GUARDED_BY(mutex);
  // What differs from the disk; empty if begin == end.
  size_t dirty_begin_ ABSL_GUARDED_BY(mutex) = 0;
  size_t dirty_end_ ABSL_GUARDED_BY(mutex) = 0;
  bool has_new_mapping_ ABSL_GUARDED_BY(mutex) = false;
};

// Keeps a slice resident.
class SliceRef {
 public:
  SliceRef() = default;
  SliceRef(SliceRef&& other) noexcept
      : slice_(std::exchange(other.slice_, nullptr)) {}
  SliceRef& operator=(SliceRef&& other) noexcept;
  ~SliceRef() { reset(); }

  Slice* operator->() const { return slice_; }
  Slice* get() const { return slice_; }
  explicit operator bool() const { return slice_ != nullptr; }
  void reset();

 private:
  friend class TableCache;
  explicit SliceRef(Slice* slice) : slice_(slice) {}
  Slice* slice_ = nullptr;
};

// A copy of the dirty bytes of one slice, on its way to the disk.
struct DirtyPiece {
  SliceRef slice;
  HostOffset host;   // where `bytes` go
  size_t begin = 0;  // within the slice
  std::vector<uint8_t> bytes;
  bool has_new_mapping = false;
};

struct TableCacheCounters {
  uint64_t misses = 0;
  uint64_t evictions = 0;
};

class TableCache {
 public:
  // `file` must outlive the cache.  `load_purpose` tags the reads.
  // REQUIRES: slice_bytes is a power of two >= 512.
  TableCache(ByteChannel* file, Purpose load_purpose, size_t slice_bytes,
             uint64_t capacity_bytes);
  // REQUIRES: no SliceRef is left.  Dirty slices are forgotten.
  ~TableCache();

  // The slice at `host`, a multiple of the slice size; reads it if necessary.
  // Errors: those of the read; the slice is then not kept.
  absl::StatusOr<SliceRef> get(HostOffset host);
  // The slice if it is there and loaded; never blocks on I/O.
  SliceRef try_get(HostOffset host);
  // The same for a short look: calls `look` with the slice and returns what
  // that returned; false if the slice is not there.  `look` runs under a lock
  // of the cache and may lock the slice, nothing else.
  template <typename Look>
  bool try_look(HostOffset host, const Look& look) {
    Shard& shard = shard_of(host);
    MetadataReaderLock lock(&shard.mutex);
    Slice* const slice = find_ready_locked(&shard, host);
    return slice != nullptr && look(slice);
  }

  bool has_dirty() const {
    return dirty_count_.load(std::memory_order_relaxed) != 0;
  }
  // True if dirty slices crowd the cache: somebody should run a flush round.
  bool wants_write_back() const;
  // True if the dirty slices alone are twice what the cache should hold.
  bool is_overfull() const;

  // Moves copies of everything dirty to the end of `pieces`, in order of host
  // offset; those slices count as clean from then on, until changed again.
  // Each piece is later passed to restore() if it did not reach the disk.
  // One caller at a time (the flush round).
  void take_dirty(std::vector<DirtyPiece>* pieces);
  void restore(std::vector<DirtyPiece>* pieces);

  // Forgets the slices of the table at `host`, `table_bytes` long, which no
  // longer is one.  REQUIRES: none is in use or dirty, nor will be.
  void discard(HostOffset host, uint64_t table_bytes);

  size_t slice_bytes() const { return slice_bytes_; }
  uint64_t capacity_bytes() const { return capacity_slices_ * slice_bytes_; }
  // What is too much goes little by little, as slices are loaded.
  void set_capacity(uint64_t capacity_bytes) {
    capacity_slices_ = std::max<uint64_t>(capacity_bytes / slice_bytes_, 1);
  }
  TableCacheCounters counters() const;

 private:
  friend class Slice;
  static constexpr size_t kShards = 8;

  struct alignas(64) Shard {
    MetadataMutex mutex ABSL_ACQUIRED_AFTER(lock_ranks::cache_shard)
        ABSL_ACQUIRED_BEFORE(lock_ranks::slice){LockRank::kCacheShard};
    absl::flat_hash_map<uint64_t, std::unique_ptr<Slice>> slices
        ABSL_GUARDED_BY(mutex);
    // Second chance: slices in a ring, and where the hand stands.
    std::vector<Slice*> ring ABSL_GUARDED_BY(mutex);
    size_t hand ABSL_GUARDED_BY(mutex) = 0;
    // Where users of loading slices wait.
    absl::CondVar loaded;
    std::atomic<uint64_t> misses{0};
    std::atomic<uint64_t> evictions{0};
  };

  Shard& shard_of(HostOffset host);
  // Null unless the slice is there and loaded.  Gives it a second chance.
  static Slice* find_ready_locked(Shard* shard, HostOffset host)
      ABSL_SHARED_LOCKS_REQUIRED(shard->mutex);
  // Evicts until the cache holds no more than its capacity, or the effort of
  // one miss is spent.
  void make_room();
  // Evicts one slice, if a few looks find one.
  void evict_one_locked(Shard* shard)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  void erase_locked(Shard* shard, size_t ring_index)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(shard->mutex);
  absl::Status load(Slice* slice) ABSL_LOCKS_EXCLUDED(slice->mutex);
  absl::StatusOr<SliceRef> wait_until_loaded(Shard* shard, SliceRef slice);
  void note_dirty(Slice* slice);

  ByteChannel* const file_;
  const Purpose load_purpose_;
  const size_t slice_bytes_;
  std::atomic<size_t> capacity_slices_;
  SliceMemory memory_;  // outlives the slices

  std::array<Shard, kShards> shards_;
  // In all shards together.  The capacity is that of the whole cache: slices
  // never spread evenly, and a cache that covers all tables must keep them all.
  std::atomic<size_t> resident_{0};
  std::atomic<size_t> next_to_evict_{0};  // a shard

  MetadataMutex dirty_mutex_ ABSL_ACQUIRED_AFTER(lock_ranks::dirty_slices)
      ABSL_ACQUIRED_BEFORE(lock_ranks::l1_table){LockRank::kDirtySlices};
  // Each holds one reference.
  std::vector<Slice*> dirty_ ABSL_GUARDED_BY(dirty_mutex_);
  std::atomic<size_t> dirty_count_{0};
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_TABLE_CACHE_H_

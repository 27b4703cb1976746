// MetadataMutex: an absl::Mutex that guards a format's metadata and knows,
// per thread, that it is held.
//
// The rule "no file I/O under a lock that other requests need" can then be
// checked while tests run: a driver below the format asserts at each access
// that held_by_this_thread() is zero.
//
// Ranks: lock_ranks.h.  Two mutexes of one rank are never held together by one
// thread, and ranks are acquired in increasing order; debug builds assert it.
//
// Thread safety: as a mutex.
#ifndef SPINDLE_ENGINE_METADATA_MUTEX_H_
#define SPINDLE_ENGINE_METADATA_MUTEX_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace spindle {

// In the order in which they are acquired.  ARCHITECTURE.md explains each.
enum class LockRank : uint8_t {
  kMappingChanges,
  kFlush,
  kAllocator,
  kCacheShard,
  kSlice,
  kDirtySlices,
  kL1Table,
  kMetadataExtents,
  kPendingFrees,
  kInflatedCopies,
};

class ABSL_LOCKABLE MetadataMutex {
 public:
  explicit MetadataMutex(LockRank rank) : rank_(rank) {}
  MetadataMutex(const MetadataMutex&) = delete;
  MetadataMutex& operator=(const MetadataMutex&) = delete;

  // The bodies are not analysed: they lock mutex_, and promise *this*.  Callers
  // are analysed in full.
  void lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    note_acquire();
    mutex_.Lock();
  }
  void unlock() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex_.Unlock();
    note_release();
  }
  void lock_shared()
      ABSL_SHARED_LOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    note_acquire();
    mutex_.ReaderLock();
  }
  void unlock_shared() ABSL_UNLOCK_FUNCTION() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    mutex_.ReaderUnlock();
    note_release();
  }
  bool try_lock()
      ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    note_acquire();
    if (mutex_.TryLock()) return true;
    note_release();
    return false;
  }

  // Waits for `signal`, releasing the mutex meanwhile.
  void wait(absl::CondVar* signal) ABSL_EXCLUSIVE_LOCKS_REQUIRED(this) {
    note_release();
    signal->Wait(&mutex_);
    note_acquire();
  }

  // How many metadata mutexes the calling thread holds.
  static int held_by_this_thread();

 private:
  void note_acquire();
  void note_release();

  const LockRank rank_;
  absl::Mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MetadataLock {
 public:
  explicit MetadataLock(MetadataMutex* mutex)
      ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->lock();
  }
  ~MetadataLock() ABSL_UNLOCK_FUNCTION() { mutex_->unlock(); }
  MetadataLock(const MetadataLock&) = delete;
  MetadataLock& operator=(const MetadataLock&) = delete;

 private:
  MetadataMutex* const mutex_;
};

class ABSL_SCOPED_LOCKABLE MetadataReaderLock {
 public:
  explicit MetadataReaderLock(MetadataMutex* mutex)
      ABSL_SHARED_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_->lock_shared();
  }
  ~MetadataReaderLock() ABSL_UNLOCK_FUNCTION() { mutex_->unlock_shared(); }
  MetadataReaderLock(const MetadataReaderLock&) = delete;
  MetadataReaderLock& operator=(const MetadataReaderLock&) = delete;

 private:
  MetadataMutex* const mutex_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_METADATA_MUTEX_H_

#include "engine/secret_memory.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

#include "absl/base/internal/raw_logging.h"
#include "absl/base/macros.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {
namespace {

// The pages that are given out, first fit.
class SecretPages {
 public:
  SecretPages()
      : page_bytes_(static_cast<size_t>(sysconf(_SC_PAGESIZE))),
        length_of_(kSecretMemoryBytes / page_bytes_) {
    void* const memory =
        mmap(nullptr, kSecretMemoryBytes, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    if (madvise(memory, kSecretMemoryBytes, MADV_DONTDUMP) != 0) {
      munmap(memory, kSecretMemoryBytes);
      return;
    }
    base_ = static_cast<uint8_t*>(memory);
  }

  void* allocate(size_t size_bytes) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (base_ == nullptr || size_bytes > kSecretMemoryBytes) return nullptr;
    const size_t pages = (size_bytes + page_bytes_ - 1) / page_bytes_;
    uint8_t* const memory = claim(pages);
    // A process may lock little memory; more than that is secret all the same.
    if (memory != nullptr)
      static_cast<void>(mlock(memory, pages * page_bytes_));
    return memory;
  }

  void release(void* memory) ABSL_LOCKS_EXCLUDED(mutex_) {
    const size_t bytes = size_of(memory);
    wipe(memory, bytes);
    munlock(memory, bytes);
    absl::MutexLock lock(&mutex_);
    length_of_[page_of(memory)] = 0;
  }

  bool contains(const void* memory) const {
    const auto* const at = static_cast<const uint8_t*>(memory);
    return base_ != nullptr && at >= base_ && at < base_ + kSecretMemoryBytes;
  }

  size_t size_of(const void* memory) ABSL_LOCKS_EXCLUDED(mutex_) {
    ABSL_RAW_CHECK(contains(memory), "not secret memory");
    absl::MutexLock lock(&mutex_);
    return length_of_[page_of(memory)] * page_bytes_;
  }

 private:
  size_t page_of(const void* memory) const {
    return static_cast<size_t>(static_cast<const uint8_t*>(memory) - base_) /
           page_bytes_;
  }

  // Null if no run of free pages is long enough.
  uint8_t* claim(size_t pages) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    size_t run = 0;
    for (size_t page = 0; page < length_of_.size(); ++page) {
      if (length_of_[page] != 0) {
        page += length_of_[page] - 1;
        run = 0;
      } else if (++run == pages) {
        const size_t first = page + 1 - pages;
        length_of_[first] = pages;
        return base_ + first * page_bytes_;
      }
    }
    return nullptr;
  }

  const size_t page_bytes_;
  uint8_t* base_ = nullptr;  // const once constructed
  // A leaf: nothing is acquired while it is held.
  absl::Mutex mutex_;
  // By the first page of what is given out: how many pages; else 0.
  std::vector<size_t> length_of_ ABSL_GUARDED_BY(mutex_);
};

SecretPages& secret_pages() {
  // Lives as long as the process: static objects may hold secrets.
  static SecretPages* const pages = new SecretPages();
  return *pages;
}

}  // namespace

void* allocate_secret(size_t size_bytes) {
  ABSL_ASSERT(size_bytes > 0);
  return secret_pages().allocate(size_bytes);
}

void free_secret(void* memory) {
  if (memory != nullptr) secret_pages().release(memory);
}

bool is_secret(const void* memory) { return secret_pages().contains(memory); }

size_t secret_size_bytes(const void* memory) {
  return secret_pages().size_of(memory);
}

void wipe(void* memory, size_t size_bytes) {
  explicit_bzero(memory, size_bytes);
}

}  // namespace spindle

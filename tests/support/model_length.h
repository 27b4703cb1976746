// ModelLength: which lengths a disk may have while requests race with changes
// of it.
//
// On a clock of its own it remembers when each change began and ended.  A
// request that was submitted during [from, to] meets any length that the disk
// may have had at a moment of that interval: the one before a change until the
// change has ended, the one after it from its begin on.
//
// Thread safety: every method, from any thread; one change at a time.
#ifndef SPINDLE_TESTS_SUPPORT_MODEL_LENGTH_H_
#define SPINDLE_TESTS_SUPPORT_MODEL_LENGTH_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle::testing {

class ModelLength {
 public:
  explicit ModelLength(uint64_t length_bytes)
      : entries_{{.length_bytes = length_bytes, .begun = 0, .ended = 0}} {}
  ModelLength(const ModelLength&) = delete;
  ModelLength& operator=(const ModelLength&) = delete;

  // The newest: what a change in progress makes it.
  uint64_t newest() const;

  // Around the change; `done`: false if it failed, and changed nothing.
  void begin(uint64_t length_bytes);
  void end(bool done);

  // A moment; each is later than those that were asked for before.
  uint64_t now() const { return clock_.fetch_add(1) + 1; }
  // The lengths of which the disk may have had one during [from, to].
  std::vector<uint64_t> possible(uint64_t from, uint64_t to) const;

 private:
  struct Entry {
    uint64_t length_bytes;
    uint64_t begun;
    uint64_t ended;  // the change to it; kNever: in progress
  };
  static constexpr uint64_t kNever = UINT64_MAX;

  mutable std::atomic<uint64_t> clock_{1};
  mutable absl::Mutex mutex_;
  std::vector<Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_MODEL_LENGTH_H_

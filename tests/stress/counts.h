// Counts: how many of each operation a stress run made.
//
// Thread safety: note() from any thread; the rest once they have ended.
#ifndef SPINDLE_TESTS_STRESS_COUNTS_H_
#define SPINDLE_TESTS_STRESS_COUNTS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace spindle::testing {

enum class Operation {
  kRead,
  kWrite,
  kPread,
  kPwrite,
  kDiscard,
  kWriteZeroes,
  kFlush,
  kWriteCompressed
};
inline constexpr size_t kOperationCount = 8;

enum class Mode { kSynchronous, kCallback, kQueue };
inline constexpr size_t kModeCount = 3;

class Counts {
 public:
  void note(Operation operation, Mode mode) { ++at(operation, mode); }
  void note_cancel() { ++cancels_; }
  void note_withdrawn() { ++withdrawn_; }
  // For a range that the disk did not have.
  void note_refused() { ++refused_; }

  uint64_t withdrawn() const { return withdrawn_; }

  // The least of: each operation, synchronous; each, asynchronous; cancels.
  uint64_t least() const;
  void add(const Counts& other);
  std::string to_string() const;

 private:
  std::atomic<uint64_t>& at(Operation operation, Mode mode) {
    return counts_[static_cast<size_t>(operation)][static_cast<size_t>(mode)];
  }

  std::array<std::array<std::atomic<uint64_t>, kModeCount>, kOperationCount>
      counts_{};
  std::atomic<uint64_t> cancels_{0};
  std::atomic<uint64_t> withdrawn_{0};
  std::atomic<uint64_t> refused_{0};
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_STRESS_COUNTS_H_

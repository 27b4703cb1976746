// What a check of an image is asked for, and what it finds.
//
// Thread safety: values.
#ifndef SPINDLE_ENGINE_IMAGE_CHECK_H_
#define SPINDLE_ENGINE_IMAGE_CHECK_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/strings/string_view.h"
#include "threadpool/executor.h"

namespace spindle {

struct CheckOptions {
  // Repairs: give back clusters that nothing uses; and everything else that can
  // be repaired.
  bool fix_leaks = false;
  bool fix_errors = false;
  // Runs pieces of the work in parallel; the caller's thread runs some itself.
  // Null: the caller's thread does it all.
  Executor* executor = nullptr;
  // One finding or repair, as a line without its end, in the words that
  // qemu-img uses.  Called from one thread at a time; may be empty.
  std::function<void(absl::string_view line)> report = nullptr;
  // How far it is; 0 <= done <= total.  From one thread at a time; may be
  // empty.
  std::function<void(uint64_t done, uint64_t total)> progress = nullptr;
  // Set by anybody, at any time: check() then returns kCancelled soon, with the
  // image as it was or as repaired as it is.  May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

// The counts that `qemu-img check` prints.
struct CheckResult {
  // What could not be checked, for errors of I/O.
  uint64_t check_errors = 0;
  // What is left after repairs, and what was repaired.
  uint64_t corruptions = 0;
  uint64_t leaks = 0;
  uint64_t corruptions_fixed = 0;
  uint64_t leaks_fixed = 0;
  // One past the last byte that the image uses in its file.
  uint64_t image_end_offset = 0;
  // Guest clusters; of those: with a place of their own, out of line with the
  // one before, compressed.
  uint64_t total_clusters = 0;
  uint64_t allocated_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t compressed_clusters = 0;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_IMAGE_CHECK_H_

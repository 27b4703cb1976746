// Progress: how far a command is, in qemu-img's way.
//
// With "-p" on standard output, each time it is a percent further.  SIGUSR1
// (and SIGINFO elsewhere) asks a program that shows nothing for one line on
// standard error.
//
// Thread safety: any thread may call report(); one thread all else.
#ifndef SPINDLE_TOOLS_PROGRESS_H_
#define SPINDLE_TOOLS_PROGRESS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

class Progress {
 public:
  // Prints the first line if `shown`; else SIGUSR1 asks.
  explicit Progress(bool shown);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `total`; 0 of 0 is all.
  void report(uint64_t done, uint64_t total) ABSL_LOCKS_EXCLUDED(mutex_);
  // All is done: says so, and ends the line.
  void finish() ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends the line.
  void end_line() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void print_locked(double percent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const bool shown_;
  absl::Mutex mutex_;
  double percent_ ABSL_GUARDED_BY(mutex_) = 0;
  double printed_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace spindle

#endif  // SPINDLE_TOOLS_PROGRESS_H_

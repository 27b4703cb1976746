// WriteLog: what happened to a file, in order, and what a power cut may leave
// of it.
//
// A LoggingDriver passes requests on and writes them down.  After a cut
// everything from before the last completed flush is there; of what came later,
// any sectors of any writes.
//
// Thread safety: the log and the driver, any thread; a CutDisk, one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_WRITE_LOG_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_WRITE_LOG_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_driver.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {

struct LogEntry {
  enum class Kind { kWrite, kZeroes, kLength, kFlush, kIgnoredFlush, kMark };
  Kind kind;
  ByteRange range = {};    // kWrite, kZeroes
  std::string bytes = {};  // kWrite
  uint64_t length = 0;     // kLength: the file's new length
  // When: as the clock says.  With a clock of its own, the index in the log.
  size_t moment = 0;
};

// What counts the entries of all logs that share it, so that they can be cut at
// one moment.
using LogClock = std::atomic<size_t>;

// A driver over memory that logs.  Each change and its entry are one step.
class LoggingDriver final : public BlockDriver {
 public:
  // Which flushes are done, by their number from 1 on; of the others it is only
  // said, as by a disk that lies.
  using HonestFlush = std::function<bool(int number)>;

  LoggingDriver(const std::string& content, HonestFlush honest,
                std::shared_ptr<LogClock> clock = nullptr);

  absl::Status read(const IoVector& qiov, Sector sector) override {
    return memory_.read(qiov, sector);
  }
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  absl::string_view format_name() const override { return "log"; }
  uint64_t length_bytes() const override { return memory_.length_bytes(); }
  bool read_only() const override { return false; }
  Capabilities capabilities() const override { return memory_.capabilities(); }
  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;

  // A moment like no other: what was entered before, in any log of this clock,
  // has a lower one, what comes later has not.
  size_t mark() ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<LogEntry> entries() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void enter(LogEntry entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  MemoryDriver memory_;
  const HonestFlush honest_;
  const std::shared_ptr<LogClock> clock_;
  mutable absl::Mutex mutex_;
  std::vector<LogEntry> log_ ABSL_GUARDED_BY(mutex_);
  int flushes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Replays a log, and makes files as they may be after a cut.
class CutDisk {
 public:
  // `initial` is durable.
  CutDisk(std::string initial, std::vector<LogEntry> log)
      : durable_(std::move(initial)), log_(std::move(log)) {}

  // The file after a cut behind the entries that came before `moment`.
  // REQUIRES: moments never decrease from call to call.
  std::string cut(size_t moment, std::mt19937_64* random);

 private:
  std::string durable_;
  // durable_ holds what lies before it: the entry behind a flush.
  size_t durable_until_ = 0;
  const std::vector<LogEntry> log_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_WRITE_LOG_H_

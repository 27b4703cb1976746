// GatedDriver: a MemoryDriver whose transfers can be made to wait, to fail, and
// that remembers who did them.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_TESTS_ENGINE_GATED_DRIVER_H_
#define SPINDLE_TESTS_ENGINE_GATED_DRIVER_H_

#include <algorithm>
#include <functional>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {

class GatedDriver : public MemoryDriver {
 public:
  struct Transfer {
    bool write = false;
    uint64_t offset = 0;
    uint64_t length = 0;
    size_t segments = 0;
  };

  using MemoryDriver::MemoryDriver;
  ~GatedDriver() override { open_gate(); }

  // From now on, transfers wait until open_gate().
  void close_gate() ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    closed_ = true;
  }
  void open_gate() ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    closed_ = false;
  }
  // Waits until `count` transfers stand before the gate.
  void wait_for_waiting(int count) ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    while (waiting_ < count) changed_.Wait(&gate_);
  }
  void fail_with(const absl::Status& status) ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    failure_ = status;
  }
  // A transfer that touches that byte fails, and waits for no gate.
  void fail_transfers_at(uint64_t offset, const absl::Status& status)
      ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    bad_offset_ = offset;
    bad_status_ = status;
  }
  void fail_flush_with(const absl::Status& status) ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    flush_failure_ = status;
  }

  std::vector<Transfer> transfers() const ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    return transfers_;
  }
  bool did_io(std::thread::id thread) const ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    return threads_.count(thread) > 0;
  }
  // The most transfers that were under way at one time.
  int most_at_once() const ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    return most_at_once_;
  }
  int close_count() const ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    return close_count_;
  }

  absl::Status read(const IoVector& qiov, Sector sector) override {
    if (absl::Status status = pass(false, qiov, sector); !status.ok())
      return leave(status);
    return leave(MemoryDriver::read(qiov, sector));
  }
  absl::Status write(const IoVector& qiov, Sector sector) override {
    if (absl::Status status = pass(true, qiov, sector); !status.ok())
      return leave(status);
    return leave(MemoryDriver::write(qiov, sector));
  }
  uint64_t try_read(const IoVector& qiov, Sector sector) override {
    {
      absl::MutexLock lock(&gate_);
      threads_.insert(std::this_thread::get_id());
      if (closed_ && !try_passes_gate) return 0;
    }
    const uint64_t part = std::min(try_limit_bytes, qiov.length_bytes());
    return MemoryDriver::read(qiov.slice(0, part), sector).ok() ? part : 0;
  }
  uint64_t try_write(const IoVector& qiov, Sector sector) override {
    {
      absl::MutexLock lock(&gate_);
      threads_.insert(std::this_thread::get_id());
      if (closed_ && !try_passes_gate) return 0;
    }
    const uint64_t part = std::min(try_limit_bytes, qiov.length_bytes());
    return MemoryDriver::write(qiov.slice(0, part), sector).ok() ? part : 0;
  }
  absl::Status flush() override {
    absl::MutexLock lock(&gate_);
    if (!flush_failure_.ok()) return flush_failure_;
    return MemoryDriver::flush();
  }
  absl::Status reopen(const ReopenOptions& options) override {
    absl::MutexLock lock(&gate_);
    reopened_read_only_ = options.read_only;
    return absl::OkStatus();
  }
  bool read_only() const override {
    absl::MutexLock lock(&gate_);
    return reopened_read_only_ || MemoryDriver::read_only();
  }
  absl::Status close() override {
    absl::MutexLock lock(&gate_);
    ++close_count_;
    return absl::OkStatus();
  }

  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override {
    if (before_set_length) before_set_length();
    return MemoryDriver::set_length(length_bytes, mode);
  }

  // Called in the midst of a change of the length.  Set before use.
  std::function<void()> before_set_length;
  // Called by a transfer that fails that way.  Set before use.
  std::function<void()> before_failure;
  // How much try_read() and try_write() do at most.  Set before use.
  uint64_t try_limit_bytes = UINT64_MAX;
  // A closed gate does not keep them from it.  Set before use.
  bool try_passes_gate = false;

 private:
  absl::Status pass(bool write, const IoVector& qiov, Sector sector) {
    const ByteRange range{sector.byte_offset(), qiov.length_bytes()};
    if (touches_bad(range)) {
      if (before_failure) before_failure();
      absl::MutexLock lock(&gate_);
      ++at_once_;
      return bad_status_;
    }
    absl::MutexLock lock(&gate_);
    threads_.insert(std::this_thread::get_id());
    transfers_.push_back({write, sector.byte_offset(), qiov.length_bytes(),
                          qiov.segment_count()});
    most_at_once_ = std::max(most_at_once_, ++at_once_);
    ++waiting_;
    changed_.SignalAll();
    gate_.Await(
        absl::Condition(+[](bool* closed) { return !*closed; }, &closed_));
    --waiting_;
    return failure_;
  }
  bool touches_bad(ByteRange range) const ABSL_LOCKS_EXCLUDED(gate_) {
    absl::MutexLock lock(&gate_);
    return range.offset <= bad_offset_ && bad_offset_ < range.end();
  }
  absl::Status leave(absl::Status status) {
    absl::MutexLock lock(&gate_);
    --at_once_;
    return status;
  }

  mutable absl::Mutex gate_;
  absl::CondVar changed_;
  bool closed_ ABSL_GUARDED_BY(gate_) = false;
  int waiting_ ABSL_GUARDED_BY(gate_) = 0;
  int at_once_ ABSL_GUARDED_BY(gate_) = 0;
  int most_at_once_ ABSL_GUARDED_BY(gate_) = 0;
  int close_count_ ABSL_GUARDED_BY(gate_) = 0;
  bool reopened_read_only_ ABSL_GUARDED_BY(gate_) = false;
  uint64_t bad_offset_ ABSL_GUARDED_BY(gate_) = UINT64_MAX;
  absl::Status bad_status_ ABSL_GUARDED_BY(gate_);
  absl::Status failure_ ABSL_GUARDED_BY(gate_);
  absl::Status flush_failure_ ABSL_GUARDED_BY(gate_);
  std::vector<Transfer> transfers_ ABSL_GUARDED_BY(gate_);
  std::set<std::thread::id> threads_ ABSL_GUARDED_BY(gate_);
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_ENGINE_GATED_DRIVER_H_

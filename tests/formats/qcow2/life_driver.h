// LifeDriver: a file in memory that can be reopened and inactivated, notes
// those calls, and fails the one that it is told to.
//
// Thread safety: the data path as BlockDriver; everything else one thread.
#ifndef SPINDLE_TESTS_FORMATS_QCOW2_LIFE_DRIVER_H_
#define SPINDLE_TESTS_FORMATS_QCOW2_LIFE_DRIVER_H_

#include <atomic>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/errors.h"
#include "tests/support/memory_driver.h"

namespace spindle::testing {

using Calls = std::vector<std::string>;

class LifeDriver final : public MemoryDriver {
 public:
  explicit LifeDriver(bool read_only)
      : MemoryDriver(options()), read_only_(read_only) {}

  bool read_only() const override { return read_only_; }
  absl::Status reopen(const ReopenOptions& options) override {
    absl::Status status =
        note(options.read_only ? "reopen for reading" : "reopen for writing");
    if (status.ok()) read_only_ = options.read_only;
    return status;
  }
  absl::Status inactivate() override {
    absl::SleepFor(inactivate_delay);
    return note("inactivate");
  }
  absl::Status activate() override { return note("activate"); }
  absl::Status close() override { return note("close"); }

  void fail_next(const std::string& call) { failing_ = call; }
  bool exchange_read_only(bool value) { return read_only_.exchange(value); }
  Calls take_calls() { return std::exchange(calls_, {}); }

  absl::Duration inactivate_delay = absl::ZeroDuration();

 private:
  static Options options() {
    Options options;
    options.capabilities.add(Capability::kReopen);
    options.capabilities.add(Capability::kInactivate);
    return options;
  }
  absl::Status note(const std::string& call) {
    calls_.push_back(call);
    if (call != failing_) return absl::OkStatus();
    failing_.clear();
    return errno_status(EIO, call);
  }

  std::atomic<bool> read_only_;
  Calls calls_;
  std::string failing_;
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_FORMATS_QCOW2_LIFE_DRIVER_H_

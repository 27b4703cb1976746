// ObservingDriver: passes everything through to the driver below it, and
// watches the accesses of the format above it through its ByteChannel.
//
// It asserts that no access happens under a metadata mutex, stops at chosen
// accesses, injects errors, and counts.  It also passes each access on to the
// observer of its child, if that has one.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_TESTS_SUPPORT_OBSERVING_DRIVER_H_
#define SPINDLE_TESTS_SUPPORT_OBSERVING_DRIVER_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/access.h"
#include "engine/filter_driver.h"
#include "engine/suspension.h"

namespace spindle {
namespace testing {

// Which accesses are meant: those that fit everything that is set.
struct AccessMatch {
  std::optional<Purpose> purpose = std::nullopt;
  std::optional<AccessKind> kind = std::nullopt;
  // Accesses that overlap this range.
  std::optional<ByteRange> range = std::nullopt;

  bool fits(const Access& access) const;
};

class ObservingDriver : public FilterDriver, private AccessObserver {
 public:
  // A place where the accessing thread stops until it is resumed.  The
  // destructor resumes, so a failing test does not hang.
  class Stop {
   public:
    ~Stop();
    // Waits until a thread has stopped here.
    void wait_until_reached();
    bool reached() const;
    // Lets it go on; if it comes later, it does not stop.
    void resume();

   private:
    friend class ObservingDriver;
    explicit Stop(std::shared_ptr<Suspension> suspension);
    // Shared with the thread that stops, which may outlive the Stop.
    const std::shared_ptr<Suspension> suspension_;
  };

  enum class Repeat { kOnce, kFromThenOn };

  // REQUIRES: child != nullptr.
  explicit ObservingDriver(std::shared_ptr<BlockDriver> child);
  ~ObservingDriver() override;

  // ---- Locks ----
  // An access under a metadata mutex is a test failure, except for these
  // purposes.  ARCHITECTURE.md says which, and why.
  void allow_metadata_mutex_for(std::initializer_list<Purpose> purposes);
  // How many accesses broke that rule.
  uint64_t lock_violation_count() const { return lock_violations_.load(); }

  // ---- Stops ----
  // Stops the thread that makes the nth access from now on (1 is the next) that
  // fits `match`.
  std::unique_ptr<Stop> stop_at(AccessMatch match, int nth = 1)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // ---- Errors ----
  // The nth access from now on that fits `match` fails with `error_number`, and
  // if so wished all that follow.
  void fail_at(AccessMatch match, int error_number, int nth = 1,
               Repeat repeat = Repeat::kOnce) ABSL_LOCKS_EXCLUDED(mutex_);
  void clear_failures() ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t failure_count() const { return failures_.load(); }

  // ---- Counts ----
  uint64_t count(Purpose purpose, AccessKind kind) const;
  uint64_t count(Purpose purpose) const;
  uint64_t count(AccessKind kind) const;
  uint64_t total_count() const;
  void reset_counts();

  // Called on the accessing thread before all else; for whatever this class
  // does not offer.  Set before the driver is used.
  void set_hook(std::function<absl::Status(const Access&)> hook);

  AccessObserver* access_observer() override { return this; }

 private:
  static constexpr int kKinds = static_cast<int>(AccessKind::kSetLength) + 1;

  // What happens at the access that makes `countdown` 0.
  struct StopRule {
    AccessMatch match;
    int countdown;
    std::shared_ptr<Suspension> suspension;
  };
  struct FailureRule {
    AccessMatch match;
    int countdown;
    int error_number;
    Repeat repeat;
  };

  absl::Status before_access(const Access& access) override;
  void check_locks(const Access& access);
  std::vector<std::shared_ptr<Suspension>> take_due_stops(const Access& access)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status due_failure(const Access& access) ABSL_LOCKS_EXCLUDED(mutex_);

  AccessObserver* const child_observer_;
  std::function<absl::Status(const Access&)> hook_;

  std::atomic<uint64_t> allowed_purposes_{0};
  std::atomic<uint64_t> lock_violations_{0};
  std::atomic<uint64_t> failures_{0};
  std::array<std::array<std::atomic<uint64_t>, kKinds>, kPurposeCount>
      counts_{};
  // True while there are rules: accesses look no further otherwise.
  std::atomic<bool> has_rules_{false};

  absl::Mutex mutex_;
  std::vector<StopRule> stops_ ABSL_GUARDED_BY(mutex_);
  std::vector<FailureRule> failure_rules_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace testing
}  // namespace spindle

#endif  // SPINDLE_TESTS_SUPPORT_OBSERVING_DRIVER_H_

// BlkdebugRules: which requests fail, or stop, and when.
//
// Rules wait for events.  An event makes the errors of its rules active, in
// place of those that were active before; from then on the requests that fit
// one fail, until another event brings others or the error was for once.  An
// event may also change the state, a number that starts at 1 and that rules may
// depend on, or stop the thread that raised it.  All of this is as in QEMU,
// except for `probability`, which QEMU does not have.
//
// Thread safety: every method, from any thread.  No lock is held while a thread
// stops.
#ifndef SPINDLE_FORMATS_FILTERS_BLKDEBUG_RULES_H_
#define SPINDLE_FORMATS_FILTERS_BLKDEBUG_RULES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/sector.h"
#include "engine/suspension.h"
#include "formats/filters/blkdebug_events.h"

namespace spindle {

enum class BlkdebugIo : uint8_t {
  kRead,
  kWrite,
  kWriteZeroes,
  kDiscard,
  kFlush,
  kBlockStatus,
};
// "read", "write-zeroes"; nothing if there is none of that name.
std::optional<BlkdebugIo> find_blkdebug_io(absl::string_view name);

struct BlkdebugInjectError {
  BlkdebugEvent event{};
  int state = 0;  // 0: any
  // None: all but block status.
  std::optional<BlkdebugIo> io = std::nullopt;
  int error_number = 5;  // 0: none, which hides older errors
  // Requests that contain this sector.
  std::optional<Sector> sector = std::nullopt;
  bool once = false;
  // Of the requests that fit, so many fail.
  double probability = 1;
};

struct BlkdebugSetState {
  BlkdebugEvent event{};
  int state = 0;  // 0: any
  int new_state = 0;
};

class BlkdebugRules {
 public:
  explicit BlkdebugRules(uint64_t seed) : seed_(seed), random_(seed) {}
  // REQUIRES: no thread is stopped.
  ~BlkdebugRules() = default;
  BlkdebugRules(const BlkdebugRules&) = delete;
  BlkdebugRules& operator=(const BlkdebugRules&) = delete;

  void add(const BlkdebugInjectError& rule) ABSL_LOCKS_EXCLUDED(mutex_);
  void add(const BlkdebugSetState& rule) ABSL_LOCKS_EXCLUDED(mutex_);

  // Stops the thread that next raises `event`.  Several may have one tag.
  void set_breakpoint(BlkdebugEvent event, const std::string& tag)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Lets go on what stopped first at `tag`.
  // Errors: kNotFound.
  absl::Status resume(const std::string& tag) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of breakpoints that nothing has reached yet; what is stopped at `tag` goes
  // on, all of it, and is counted in `resumed`.
  // Errors: kNotFound if there was no such breakpoint; what was stopped goes on
  // all the same.
  absl::Status remove_breakpoint(const std::string& tag,
                                 size_t* resumed = nullptr)
      ABSL_LOCKS_EXCLUDED(mutex_);
  bool is_suspended(const std::string& tag) const ABSL_LOCKS_EXCLUDED(mutex_);
  void wait_until_suspended(const std::string& tag) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // False if nothing stopped at `tag` in that time.
  bool wait_until_suspended(const std::string& tag,
                            absl::Duration timeout) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  size_t suspended_count() const ABSL_LOCKS_EXCLUDED(mutex_);
  // The tags at which something has stopped since the last call, in order.
  std::vector<std::string> take_newly_suspended() ABSL_LOCKS_EXCLUDED(mutex_);
  // Lets everything go on, and forgets all breakpoints.
  void resume_all() ABSL_LOCKS_EXCLUDED(mutex_);

  // `event` happens on this thread, which may stop.
  void raise(BlkdebugEvent event) ABSL_LOCKS_EXCLUDED(mutex_);
  // What becomes of a request.  A flush has no range.
  absl::Status check(BlkdebugIo io, ByteRange range)
      ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t seed() const { return seed_; }

 private:
  struct ErrorRule {
    BlkdebugInjectError wanted;
    bool is_used_up = false;
  };
  struct Breakpoint {
    BlkdebugEvent event{};
    std::string tag;
  };
  struct Suspended {
    std::string tag;
    std::shared_ptr<Suspension> suspension;
  };

  std::vector<std::shared_ptr<Suspension>> raise_locked(BlkdebugEvent event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool is_suspended_locked(const std::string& tag) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const uint64_t seed_;

  // A leaf: nothing is acquired while it is held, but for a Suspension's.
  mutable absl::Mutex mutex_;
  int state_ ABSL_GUARDED_BY(mutex_) = 1;
  std::vector<std::shared_ptr<ErrorRule>> errors_ ABSL_GUARDED_BY(mutex_);
  std::vector<BlkdebugSetState> set_states_ ABSL_GUARDED_BY(mutex_);
  // The newest first.
  std::vector<std::shared_ptr<ErrorRule>> active_ ABSL_GUARDED_BY(mutex_);
  std::vector<Breakpoint> breakpoints_ ABSL_GUARDED_BY(mutex_);
  std::vector<Suspended> suspended_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> newly_suspended_ ABSL_GUARDED_BY(mutex_);
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_FILTERS_BLKDEBUG_RULES_H_

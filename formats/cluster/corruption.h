// Corruption: what happens when the image turns out to be inconsistent while it
// is in use (rule 3): further writes are refused, the reason is kept and said,
// and the image is marked, if its format has a mark for that.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_CLUSTER_CORRUPTION_H_
#define SPINDLE_FORMATS_CLUSTER_CORRUPTION_H_

#include <atomic>
#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/format.h"

namespace spindle {

class Corruption {
 public:
  // Marks the image in its file; blocks on I/O.
  using Mark = std::function<absl::Status()>;

  // `format_name` begins each line of the log.  `mark` may be empty; it is
  // called once at most, without locks.
  Corruption(absl::string_view format_name, Mark mark, LogSink log);

  // The image is damaged: `reason` names the structure, the value and where.
  // Marks the image the first time (call it without locks) and returns
  // kDataLoss with the reason.
  absl::Status report(absl::string_view reason);

  // OK, or why writes are refused.
  absl::Status writes_allowed() const {
    return corrupt_.load(std::memory_order_acquire) ? refusal()
                                                    : absl::OkStatus();
  }
  bool is_set() const { return corrupt_.load(std::memory_order_acquire); }

 private:
  absl::Status refusal() const;

  const std::string format_name_;
  const Mark mark_;
  const LogSink log_;

  std::atomic<bool> corrupt_{false};
  mutable absl::Mutex mutex_;  // a leaf
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_FORMATS_CLUSTER_CORRUPTION_H_

// Corruption: what happens when the image turns out to be inconsistent while it
// is in use (rule 3): the corrupt bit is set in the file, further writes are
// refused, and the reason is kept and said.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_CORRUPTION_H_
#define SPINDLE_FORMATS_QCOW2_CORRUPTION_H_

#include <atomic>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "engine/byte_channel.h"
#include "engine/format.h"

namespace spindle::qcow2 {

class Corruption {
 public:
  // `file` must outlive this.  `header_has_bit`: version 3.
  Corruption(ByteChannel* file, bool header_has_bit,
             uint64_t incompatible_features, LogSink log);

  // From here on the header may be written; until then a report leaves the
  // file alone.
  void allow_header_update() {
    may_update_header_.store(true, std::memory_order_release);
  }

  // The image is damaged: `reason` names the structure, the value and where.
  // Sets the corrupt bit the first time (blocks on I/O; call it without locks)
  // and returns kDataLoss with the reason.
  absl::Status report(absl::string_view reason);

  // OK, or why writes are refused.
  absl::Status writes_allowed() const {
    return corrupt_.load(std::memory_order_acquire) ? refusal()
                                                    : absl::OkStatus();
  }
  bool is_set() const { return corrupt_.load(std::memory_order_acquire); }

 private:
  absl::Status refusal() const;

  ByteChannel* const file_;
  const bool header_has_bit_;
  const uint64_t incompatible_features_;
  const LogSink log_;

  std::atomic<bool> may_update_header_{false};
  std::atomic<bool> corrupt_{false};
  mutable absl::Mutex mutex_;  // a leaf
  std::string reason_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CORRUPTION_H_

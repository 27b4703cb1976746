// AmendProgress: how far an amendment of several steps is.
//
// Thread safety: one thread.
#ifndef SPINDLE_FORMATS_QCOW2_AMEND_PROGRESS_H_
#define SPINDLE_FORMATS_QCOW2_AMEND_PROGRESS_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "engine/amend.h"

namespace spindle::qcow2 {

class AmendProgress {
 public:
  // `options` must outlive this; `steps`: long ones that are to come.
  AmendProgress(const AmendOptions* options, uint64_t steps)
      : options_(*options), steps_(steps) {}

  // Within the current step `done` of `total` are done.
  void say(uint64_t done, uint64_t total) const {
    if (!options_.progress || steps_ == 0 || total == 0) return;
    const uint64_t part = std::min(done, total) * kPartsPerStep / total;
    options_.progress(
        std::min(step_ * kPartsPerStep + part, steps_ * kPartsPerStep),
        steps_ * kPartsPerStep);
  }
  void end_step() {
    say(1, 1);
    ++step_;
  }
  // kCancelled once somebody asked for it.
  absl::Status interrupted() const {
    if (options_.cancelled == nullptr || !options_.cancelled->load())
      return absl::OkStatus();
    return absl::CancelledError("the amendment was cancelled");
  }

 private:
  static constexpr uint64_t kPartsPerStep = 1000;
  const AmendOptions& options_;
  const uint64_t steps_;
  uint64_t step_ = 0;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_AMEND_PROGRESS_H_

// What the parts of one check share.
//
// Thread safety: file, header, options, interrupted() and wants_lines(), from
// any thread; everything else belongs to the thread that runs the check.  It
// calls next_piece() often, with nothing else under way.
#ifndef SPINDLE_FORMATS_QCOW2_CHECK_CONTEXT_H_
#define SPINDLE_FORMATS_QCOW2_CHECK_CONTEXT_H_

#include <algorithm>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/image_check.h"
#include "engine/sector.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/findings.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

class CheckContext {
 public:
  CheckContext(ByteChannel* channel, const Header& image_header,
               const CheckOptions& check_options)
      : file(channel), header(image_header), options(check_options) {
    geometry.version = header.version;
    geometry.cluster_bits = header.cluster_bits;
    geometry.refcount_order = header.refcount_order;
    geometry.size_bytes = header.size_bytes;
    geometry.extended_l2 = header.extended_l2();
  }

  ByteChannel* const file;
  // Follows what a repair changes.
  Header header;
  Geometry geometry;
  const CheckOptions& options;
  CheckResult result;

  // QEMU counts in sectors.
  uint64_t file_bytes() const {
    return align_up(file->length_bytes(), kSectorSizeBytes);
  }

  bool wants_lines() const { return options.report != nullptr; }
  void say(absl::string_view line) const {
    if (wants_lines()) options.report(line);
  }
  void say(Findings* findings) { findings->say(options.report, &result); }

  // kCancelled once somebody asked for it.
  absl::Status interrupted() const {
    if (options.cancelled == nullptr || !options.cancelled->load())
      return absl::OkStatus();
    return absl::CancelledError("the check was cancelled");
  }

  // Between two pieces of the check: whoever has waited for one may go first.
  // Errors: kCancelled; those of `pause`.
  absl::Status next_piece() const {
    absl::Status status = interrupted();
    return status.ok() && pause ? pause() : status;
  }
  std::function<absl::Status()> pause = nullptr;

  // Progress: the steps that are known to come, before the first is done, and
  // those that have been.
  void expect_steps(uint64_t steps) { total_ += steps; }
  void advance(uint64_t steps) {
    if (steps == 0) return;
    // The end is said by finish().
    done_ = std::min(done_ + steps, total_ == 0 ? 0 : total_ - 1);
    if (options.progress) options.progress(done_, total_);
  }
  void finish() {
    total_ = std::max<uint64_t>(total_, 1);
    done_ = total_;
    if (options.progress) options.progress(done_, total_);
  }

 private:
  uint64_t done_ = 0;
  uint64_t total_ = 0;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CHECK_CONTEXT_H_

// CorruptBit: the mark of an image that was found to be inconsistent, in its
// header.
//
// qcow2 specification, "Incompatible features", bit 1; version 3 only.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_FORMATS_QCOW2_CORRUPT_BIT_H_
#define SPINDLE_FORMATS_QCOW2_CORRUPT_BIT_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "engine/byte_channel.h"

namespace spindle::qcow2 {

class CorruptBit {
 public:
  // `file` must outlive this.  `header_has_bit`: version 3.
  CorruptBit(ByteChannel* file, bool header_has_bit,
             uint64_t incompatible_features)
      : file_(file),
        header_has_bit_(header_has_bit),
        incompatible_features_(incompatible_features) {}

  // From here on the header may be written; until then set() leaves the file
  // alone.
  void allow() { is_allowed_.store(true, std::memory_order_release); }

  // Sets the bit, if that is possible.  Errors: those of the file.
  absl::Status set();

 private:
  ByteChannel* const file_;
  const bool header_has_bit_;
  const uint64_t incompatible_features_;
  std::atomic<bool> is_allowed_{false};
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_CORRUPT_BIT_H_

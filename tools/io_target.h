// IoTarget: which image spindle-io shall open, and how.
//
// Thread safety: values and functions without state.
#ifndef SPINDLE_TOOLS_IO_TARGET_H_
#define SPINDLE_TOOLS_IO_TARGET_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/format.h"
#include "engine/request.h"
#include "engine/secret_store.h"

namespace spindle {

struct IoTarget {
  std::optional<std::string> filename;  // else `options` say what
  OptionMap options;  // by QEMU's names; "driver" is the format, else guess it
  bool read_only = false;
  bool force_share = false;
  // Writes go to an overlay that is gone afterwards.
  bool snapshot = false;
  // What is read from a backing file is written into the image.
  bool copy_on_read = false;
  // Buffers begin where direct I/O does not like it.
  bool misaligned_buffers = false;
  // Discards do nothing.
  bool ignore_discards = false;
  // -i native: asks for direct I/O, which it cannot do without.
  bool native_aio = false;
  // qemu-io's choice, too.
  CacheMode cache_mode = CacheMode::kWritethrough;
};

struct OpenedTarget {
  std::shared_ptr<BlockDriver> driver;
  CacheMode cache_mode = CacheMode::kWritethrough;
  // These two can be changed while it is open.
  bool ignore_discards = false;
  DetectZeroes detect_zeroes = DetectZeroes::kOff;
  // A snapshot's overlay, which has no name; else -1.  The caller's to close.
  int overlay_fd = -1;
};

// `secrets` may be null.
// Errors: qemu_words() has what qemu-io says.
absl::StatusOr<OpenedTarget> open_target(
    const IoTarget& target, std::shared_ptr<const SecretStore> secrets);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IO_TARGET_H_

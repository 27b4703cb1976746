// Copying what a guest sees of one image into another.
//
// What reads as zeroes is not written where the target does already, and what
// its backing file has is left to that.  The next piece is read while those
// before it are written.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_TOOLS_IMAGE_COPIER_H_
#define SPINDLE_TOOLS_IMAGE_COPIER_H_

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "engine/block_device.h"

namespace spindle {

struct CopyOptions {
  // Writes are compressed.
  bool compress = false;
  // A piece is written when those before it have been.
  bool in_order = true;
  // The target is new: it reads as zeroes.  Else zeroes are written.
  bool target_reads_as_zeroes = true;
  // What the source itself does not have, the target's backing file has.
  bool target_has_backing = false;
  // Shorter runs of zeroes among data are written; 0: all zeroes are.
  uint64_t min_zeroes_bytes = 4096;
  // 0: as fast as it goes.
  uint64_t bytes_per_second = 0;
  // Pieces that are read or written at one time; at least two.
  size_t max_pieces = 8;
  // Told how much is done, 0 to 1.
  std::function<void(double fraction)> progress = nullptr;
};

// Neither closes nor flushes.
// REQUIRES: the target is at least as long as the source's whole sectors.
absl::Status copy_image(BlockDevice& source, BlockDevice& target,
                        const CopyOptions& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_COPIER_H_

// Copying what a guest sees of one image into another, new one.
//
// What reads as zeroes is not written: the target does already.  The next piece
// is read while those before it are written.
//
// Thread safety: one thread; the devices do the rest.
#ifndef SPINDLE_TOOLS_IMAGE_COPIER_H_
#define SPINDLE_TOOLS_IMAGE_COPIER_H_

#include <cstddef>
#include <functional>

#include "absl/status/status.h"
#include "engine/block_device.h"

namespace spindle {

struct CopyOptions {
  // Writes are compressed.
  bool compress = false;
  // A piece is written when those before it have been.
  bool in_order = true;
  // Pieces that are read or written at one time; at least two.
  size_t max_pieces = 8;
  // Told how much is done, 0 to 1.
  std::function<void(double fraction)> progress = nullptr;
};

// Neither closes nor flushes.
// REQUIRES: the target is as long as the source's whole sectors, and reads as
// zeroes.
absl::Status copy_image(BlockDevice& source, BlockDevice& target,
                        const CopyOptions& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMAGE_COPIER_H_

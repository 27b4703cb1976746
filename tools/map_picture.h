// A picture of where an image has what: a strip for each layer of its chain,
// from the first byte of a range of the disk at the left to its last at the
// right.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_MAP_PICTURE_H_
#define SPINDLE_TOOLS_MAP_PICTURE_H_

#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/sector.h"
#include "tools/picture.h"

namespace spindle {

// REQUIRES: `range` ends at the image's end or before.
// Errors: those of block_status() and of what it reads.
absl::StatusOr<Picture> draw_map(BlockDriver& image, ByteRange range);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_MAP_PICTURE_H_

// The size of the disk and that of the active L1 table, which follows it, as
// the header has them.
//
// qcow2 specification, "Header": size, l1_size, l1_table_offset.
//
// Thread safety: one thread at a time, while the image's gate is closed.
#ifndef SPINDLE_FORMATS_QCOW2_IMAGE_SIZE_H_
#define SPINDLE_FORMATS_QCOW2_IMAGE_SIZE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// OK if the format can have a disk of `size_bytes` bytes in this image.
// Errors: kInvalidArgument if it is not a multiple of 512 (an image that QEMU
// can use has no other), kResourceExhausted beyond a limit.
absl::Status check_size(const Geometry& geometry, uint64_t size_bytes);

// Makes the active L1 table at least `entry_count` long: a new one is written,
// durable with its refcounts before the header names it, and then the old one
// is freed.  On error there is the old one, in the file and in memory.
// Settles the image first.
// Errors: kResourceExhausted beyond the limit of 32 MiB.
absl::Status grow_l1(Image* image, uint64_t entry_count);

// Makes the disk `size_bytes` long: one write to the header, durable.  On error
// the length is the old one.  What lies between the two ends is the caller's
// business.
// REQUIRES: the L1 table is long enough; what must be durable before is.
absl::Status switch_size(Image* image, uint64_t size_bytes);

// For when the disk has become shorter, and what was cut off has been dropped:
// settles that, drops refcount blocks that count nothing, and cuts the file.
absl::Status give_up_unused_space(Image* image);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_IMAGE_SIZE_H_

// Dirty bitmaps as the other implementation sees them: qemu-img info, and
// qemu-nbd with nbdinfo.
//
// Thread safety: functions without state; see qemu_tools.h.
#ifndef SPINDLE_TESTS_SUPPORT_QEMU_BITMAPS_H_
#define SPINDLE_TESTS_SUPPORT_QEMU_BITMAPS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sector.h"

namespace spindle::testing {

// What `qemu-img info` says of the bitmaps of a qcow2 image, one line for each:
// "name granularity flag,flag".
absl::StatusOr<std::string> qemu_bitmap_list(const std::string& path);

// The parts of the disk that are dirty in the bitmap `name` (of plain letters
// and digits), in order; neighbours are one.
absl::StatusOr<std::vector<ByteRange>> qemu_dirty_ranges(
    const std::string& path, const std::string& name);

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_SUPPORT_QEMU_BITMAPS_H_

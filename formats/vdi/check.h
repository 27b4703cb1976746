// Looks for damage in the block map of a VDI image, and finds what QEMU finds.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_VDI_CHECK_H_
#define SPINDLE_FORMATS_VDI_CHECK_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/image_check.h"

namespace spindle::vdi {

// `allocated_count`: what the header says.
// Errors: kCancelled.
absl::StatusOr<CheckResult> check_map(absl::Span<const uint32_t> entries,
                                      uint32_t allocated_count,
                                      const CheckOptions& options);

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_CHECK_H_

// Options of an open qcow image.
//
//   l2-cache-size        bytes of L2 tables in memory; default: what covers the
//                        whole image, 32 MiB at most
//   l2-cache-entry-size  size of a slice, a power of two from 512 to the size
//                        of an L2 table; default 4 KiB
//
// Those of formats/crypto/encrypt_options.h are somebody else's.
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW_RUNTIME_OPTIONS_H_
#define SPINDLE_FORMATS_QCOW_RUNTIME_OPTIONS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/format.h"
#include "formats/qcow/header.h"

namespace spindle::qcow {

struct RuntimeOptions {
  uint64_t l2_cache_bytes = 0;
  uint32_t slice_bytes = 4096;
};

// Errors: kInvalidArgument for an unknown name or a value that is not of its
// form; the message names it.
absl::StatusOr<RuntimeOptions> parse_runtime_options(const OptionMap& options,
                                                     const Header& header);

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_RUNTIME_OPTIONS_H_

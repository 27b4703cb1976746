// Options of an open qcow2 image, by QEMU's names.
//
//   l2-cache-size        bytes of L2 tables in memory; default: what covers the
//                        whole image, 32 MiB at most
//   refcount-cache-size  bytes of refcount blocks in memory; default: a quarter
//                        of the above, or what covers the whole image if less
//   cache-size           both together
//   l2-cache-entry-size  size of a slice, a power of two from 512 to the
//                        cluster size; default 4 KiB
//   reuse                "lowest" or "lazy" (default): see Allocator
//   discard-no-unref     "on": what is discarded, or made zero and may be
//                        unmapped, keeps its host cluster; version 3 only;
//                        default off
//   encrypt.format       what the image must be encrypted with: aes, luks
//   encrypt.key-secret   the id of the secret with its passphrase
//   data-file.filename   the external data file, whatever the image says
//
// Thread safety: values.
#ifndef SPINDLE_FORMATS_QCOW2_RUNTIME_OPTIONS_H_
#define SPINDLE_FORMATS_QCOW2_RUNTIME_OPTIONS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/format.h"
#include "formats/qcow2/allocator.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

struct RuntimeOptions {
  uint64_t l2_cache_bytes = 0;
  uint64_t refcount_cache_bytes = 0;
  uint32_t slice_bytes = 4096;
  ReusePolicy reuse = ReusePolicy::kLazy;
  bool punch_holes = true;
  bool discard_no_unref = false;
};

// Errors: kInvalidArgument for an unknown name, a value that is not of its
// form, or sizes that contradict each other; the message names it.  With
// `reopening` an unknown one is one that cannot be changed.
absl::StatusOr<RuntimeOptions> parse_runtime_options(const OpenOptions& options,
                                                     const Header& header,
                                                     bool reopening = false);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_RUNTIME_OPTIONS_H_

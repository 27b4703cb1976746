// Changes what an existing image is: version, refcount width, options.
//
// The steps stand in the order that lets one make way for another: up to
// version 3 first, down to version 2 last.  What can be refused is refused
// before the first; each is complete and durable before the next begins, so an
// error or a power cut leaves an image that has some of them and reads as it
// did.
//
// An amendment stops all requests of the image, for all of it, because they
// would use the caches and tables that it replaces: for some reads, writes and
// syncs; for writing all refcounts anew where their width changes; for a walk
// over all L2 tables, and zeroes written, where version 2 must do without zero
// clusters.
//
// Thread safety: one thread, with the image to itself.
#ifndef SPINDLE_FORMATS_QCOW2_AMEND_H_
#define SPINDLE_FORMATS_QCOW2_AMEND_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/amend.h"
#include "formats/qcow2/image.h"

namespace spindle::qcow2 {

// Who has the image open.
struct AmendTarget {
  // As it is open now; nothing in it is dirty when an amendment begins.
  absl::FunctionRef<Image*()> image;
  // The header is another: opens the image anew.
  absl::FunctionRef<absl::Status()> reload;
  absl::FunctionRef<absl::Status(uint64_t size_bytes)> resize;
  // Writes the snapshot table anew, with the data that version 3 demands.
  absl::FunctionRef<absl::Status()> rewrite_snapshot_table;
  // Writes what shall change of an encrypted image's key slots, if anything.
  absl::FunctionRef<absl::Status()> change_key_slots;
};

// Errors: those of plan_amend(); kUnimplemented and kInvalidArgument for what
// snapshots, clusters or refcounts stand against; kCancelled; those of the
// file.
absl::Status amend_image(const AmendTarget& target,
                         const AmendOptions& options);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_AMEND_H_

// Writes new refcount structures for references that were counted, where the
// old ones cannot be used any more.
#ifndef SPINDLE_FORMATS_QCOW2_REFCOUNT_REBUILD_H_
#define SPINDLE_FORMATS_QCOW2_REFCOUNT_REBUILD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "formats/qcow2/check_context.h"
#include "formats/qcow2/reference_counter.h"

namespace spindle::qcow2 {

// `counter`: the references to the first `clusters` clusters without those of
// the old refcount structures.  The new ones go behind everything that the file
// has, are made durable, and then the header is switched with one write; until
// then the old ones are untouched, afterwards they are free.  Follows in
// context->header.
// Errors: kResourceExhausted if the file cannot grow or the table would be too
// large, kCancelled, those of the file; the image then is as it was.
absl::Status rebuild_refcounts(CheckContext* context,
                               const ReferenceCounter& counter,
                               uint64_t clusters);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_REFCOUNT_REBUILD_H_

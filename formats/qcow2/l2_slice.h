// The entries of a slice of an L2 table, of 8 or of 16 bytes.
//
// An entry with its bitmap changes as one: both halves are read and written
// under the slice's lock, and lie in one sector.
//
// Thread safety: as the annotations say.
#ifndef SPINDLE_FORMATS_QCOW2_L2_SLICE_H_
#define SPINDLE_FORMATS_QCOW2_L2_SLICE_H_

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "formats/cluster/table_cache.h"
#include "formats/qcow2/address.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {

inline L2Entry load_entry(const Slice& slice, const Geometry& geometry,
                          size_t index)
    ABSL_SHARED_LOCKS_REQUIRED(slice.mutex) {
  uint64_t raw = slice.load64(geometry.extended_l2 ? 2 * index : index);
  // COPIED says nothing where there is no cluster; offset 0 is one only in an
  // external data file.
  if ((raw & (kL2OffsetMask | kL2Compressed)) == 0 && !geometry.external_data)
    raw &= ~kEntryCopied;
  if (!geometry.extended_l2) return L2Entry(raw);
  // Of a standard descriptor bit 0 is reserved there, and masked.
  if ((raw & kL2Compressed) == 0) raw &= ~kL2ZeroFlag;
  return L2Entry(raw, slice.load64(2 * index + 1));
}

inline void store_entry(Slice* slice, const Geometry& geometry, size_t index,
                        L2Entry entry)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(slice->mutex) {
  if (!geometry.extended_l2) {
    slice->store64(index, entry.raw());
    return;
  }
  slice->store64(2 * index, entry.raw());
  slice->store64(2 * index + 1, entry.bitmap());
}

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_L2_SLICE_H_

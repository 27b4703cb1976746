#include "formats/qcow/status_reader.h"

#include <cstdint>

#include "formats/cluster/layered_status.h"
#include "formats/qcow/cluster_map.h"

namespace spindle::qcow {
namespace {

// A call looks at no more slices than this: it holds the gate.
constexpr int kMaxLookups = 64;

}  // namespace

BlockStatus StatusReader::status_of(const MappedRun& run) const {
  BlockStatus status;
  status.length = run.bytes;
  status.allocated = status.data = run.kind != ClusterKind::kUnallocated;
  status.compressed = run.kind == ClusterKind::kCompressed;
  // What is encrypted there is not what the guest has.
  if (run.kind == ClusterKind::kNormal && !image_.transfer().is_encrypted())
    status.host_offset = run.host.bytes;
  return status;
}

absl::StatusOr<BlockStatus> StatusReader::status(ByteRange range,
                                                 BlockStatusScope scope) {
  absl::StatusOr<BlockStatus> found = layer_status(range);
  if (found.ok() && !found->allocated) {
    found = backing_status(
        *found, range, scope,
        image_.has_backing_at({range.offset}) ? image_.backing() : nullptr);
  }
  if (!found.ok()) return found;
  found->end_of_image =
      range.offset + found->length >= image_.geometry().size_bytes;
  return found;
}

absl::StatusOr<BlockStatus> StatusReader::layer_status(ByteRange range) {
  BlockStatus whole;
  for (int lookups = 0; lookups < kMaxLookups && whole.length < range.length;
       ++lookups) {
    MappedRun run;
    absl::Status status = image_.map().lookup(
        {range.offset + whole.length}, range.length - whole.length, &run);
    if (!status.ok()) return status;
    const BlockStatus next = status_of(run);
    if (whole.length == 0) {
      whole = next;
    } else if (goes_on(whole, next)) {
      whole.length += next.length;
    } else {
      break;
    }
  }
  return whole;
}

}  // namespace spindle::qcow

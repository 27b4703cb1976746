#include "formats/qcow/status_reader.h"

#include <cstdint>

#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/cluster/layered_status.h"
#include "formats/qcow/cluster_map.h"

namespace spindle::qcow {

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
  absl::StatusOr<BlockStatus> found =
      own_status(range, [this](uint64_t offset, uint64_t max_bytes) {
        return look(offset, max_bytes);
      });
  if (found.ok() && !found->allocated) {
    found = backing_status(
        *found, range, scope,
        image_.has_backing_at({align_down(range.offset, kSectorSizeBytes)})
            ? image_.backing()
            : nullptr);
  }
  if (!found.ok()) return found;
  found->end_of_image =
      range.offset + found->length >= image_.geometry().size_bytes;
  return found;
}

absl::StatusOr<BlockStatus> StatusReader::look(uint64_t offset,
                                               uint64_t max_bytes) {
  MappedRun run;
  absl::Status status = image_.map().lookup({offset}, max_bytes, &run);
  if (!status.ok()) return status;
  return status_of(run);
}

}  // namespace spindle::qcow

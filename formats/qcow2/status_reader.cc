#include "formats/qcow2/status_reader.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "engine/access.h"
#include "engine/byte_channel.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "formats/cluster/layered_status.h"
#include "formats/qcow2/cluster_map.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/refcount_entry.h"

namespace spindle::qcow2 {
namespace {

BlockStatus status_of(const MappedRun& run) {
  BlockStatus status;
  status.length = run.bytes;
  status.allocated = run.kind != ClusterKind::kUnallocated;
  status.compressed = run.kind == ClusterKind::kCompressed;
  status.data = run.kind == ClusterKind::kNormal || status.compressed;
  status.zero = run.kind == ClusterKind::kZeroPlain ||
                run.kind == ClusterKind::kZeroAllocated;
  // A subcluster may have a place that it does not use yet.
  const bool is_kept_free =
      run.kind == ClusterKind::kUnallocated && run.entry.has_host();
  if (run.kind == ClusterKind::kNormal ||
      run.kind == ClusterKind::kZeroAllocated || is_kept_free) {
    status.host_offset = run.host.bytes;
  }
  return status;
}

}  // namespace

absl::StatusOr<BlockStatus> StatusReader::status(ByteRange range,
                                                 BlockStatusScope scope) {
  absl::StatusOr<BlockStatus> found =
      own_status(range, [this](uint64_t offset, uint64_t max_bytes) {
        return look(offset, max_bytes);
      });
  if (!found.ok()) return found;
  // What lies there is not what the guest has.
  if (image_.transfer().is_encrypted()) found->host_offset.reset();
  if (found->data && found->host_offset.has_value()) {
    absl::Status status = look_for_hole(&*found);
    if (!status.ok()) return status;
  }
  if (!found->allocated) {
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

absl::Status StatusReader::look_for_hole(BlockStatus* status) {
  const absl::StatusOr<bool> worth_it = has_preallocated_metadata();
  if (!worth_it.ok()) return worth_it.status();
  if (!*worth_it) return absl::OkStatus();
  const absl::StatusOr<BlockStatus> stored =
      image_.data().block_status({*status->host_offset, status->length});
  if (!stored.ok()) return stored.status();
  status->zero = stored->zero;
  // Behind the end of the file there are zeroes, too.
  if (!stored->end_of_image || !stored->zero)
    status->length = std::min(status->length, stored->length);
  return absl::OkStatus();
}

// Whether clusters are in use that the file system knows nothing of: at least
// a tenth of them, and more than one.
absl::StatusOr<bool> StatusReader::has_preallocated_metadata() {
  const Preallocated known = preallocated_.load(std::memory_order_relaxed);
  if (known != Preallocated::kUnknown) return known == Preallocated::kYes;
  const std::optional<uint64_t> stored_bytes =
      image_.file().child().info().actual_size_bytes;
  bool found = false;
  if (stored_bytes.has_value()) {
    const uint64_t stored = *stored_bytes / image_.geometry().cluster_bytes();
    const uint64_t threshold = std::max(stored * 10 / 9, stored + 2);
    const absl::StatusOr<uint64_t> used = count_used_clusters(threshold);
    // What is damaged shows elsewhere.
    found = used.ok() && *used >= threshold;
  }
  preallocated_.store(found ? Preallocated::kYes : Preallocated::kNo,
                      std::memory_order_relaxed);
  return found;
}

// Where the header says it is now: it moves when it grows.
absl::StatusOr<StatusReader::TablePlace> StatusReader::refcount_table() {
  static_assert(kRefcountTableClustersOffset ==
                kRefcountTableOffsetOffset + sizeof(uint64_t));
  uint8_t fields[12];
  absl::Status status = image_.file().read(
      Purpose::kHeaderLoad, fields, sizeof(fields), kRefcountTableOffsetOffset);
  if (!status.ok()) return status;
  const uint64_t bytes = uint64_t{load_big32(&fields[8])}
                         << image_.geometry().cluster_bits;
  const TablePlace place{load_big64(fields), bytes / kRefcountTableEntryBytes};
  if (bytes > kMaxRefcountTableBytes || place.offset > kMaxHostOffset)
    return absl::DataLossError("the refcount table breaks a limit");
  return place;
}

absl::StatusOr<uint64_t> StatusReader::count_used_clusters(uint64_t at_most) {
  ByteChannel& file = image_.file();
  const Geometry& geometry = image_.geometry();
  const absl::StatusOr<TablePlace> table = refcount_table();
  if (!table.ok()) return table.status();
  const uint64_t clusters =
      (file.length_bytes() + geometry.cluster_bytes() - 1) /
      geometry.cluster_bytes();
  std::vector<uint8_t> block(geometry.cluster_bytes());
  uint64_t used = 0;
  for (uint64_t first = 0; first < clusters && used < at_most;
       first += geometry.refblock_entries()) {
    const uint64_t index = first / geometry.refblock_entries();
    if (index >= table->entry_count) break;
    uint8_t entry[kRefcountTableEntryBytes];
    absl::Status status =
        file.read(Purpose::kReftableLoad, entry, sizeof(entry),
                  table->offset + index * kRefcountTableEntryBytes);
    if (!status.ok()) return status;
    const uint64_t offset = load_big64(entry) & kRefcountTableOffsetMask;
    if (offset == 0) continue;
    if (offset > kMaxSizeBytes - geometry.cluster_bytes()) {
      return absl::DataLossError("a refcount block lies beyond every file");
    }
    status =
        file.read(Purpose::kRefblockLoad, block.data(), block.size(), offset);
    if (!status.ok()) return status;
    const uint64_t count =
        std::min(geometry.refblock_entries(), clusters - first);
    for (uint64_t i = 0; i < count; ++i)
      used += load_refcount(block.data(), geometry.refcount_order, i) != 0;
  }
  return used;
}

}  // namespace spindle::qcow2

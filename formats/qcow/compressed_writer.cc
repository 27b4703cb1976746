#include "formats/qcow/compressed_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/macros.h"
#include "engine/access.h"
#include "engine/sector.h"
#include "formats/cluster/compression_type.h"
#include "formats/cluster/compressor.h"
#include "formats/cluster/first_writes.h"
#include "formats/qcow/table_entry.h"

namespace spindle::qcow {

absl::Status CompressedWriter::write(GuestOffset guest, const IoVector& qiov) {
  const uint64_t cluster_bytes = image_.geometry().cluster_bytes();
  ABSL_ASSERT(image_.geometry().offset_in_cluster(guest.bytes) == 0);
  const uint64_t length = qiov.length_bytes();
  // A copy: the guest may change its memory while it is compressed.
  std::vector<uint8_t> cluster(cluster_bytes);
  std::vector<uint8_t> compressed(cluster_bytes - 1);
  for (uint64_t done = 0; done < length;) {
    absl::Status status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    const uint64_t bytes = std::min(cluster_bytes, length - done);
    qiov.copy_to(done, cluster.data(), bytes);
    // Behind the end of the disk.
    std::memset(cluster.data() + bytes, 0, cluster_bytes - bytes);
    const absl::StatusOr<size_t> compressed_bytes = compress_cluster(
        CompressionType::kZlib, cluster, absl::MakeSpan(compressed));
    if (!compressed_bytes.ok()) return compressed_bytes.status();
    absl::StatusOr<bool> is_stored = false;
    const GuestOffset at{guest.bytes + done};
    if (*compressed_bytes != 0) {
      is_stored =
          put(at, absl::MakeConstSpan(compressed).first(*compressed_bytes));
    }
    if (!is_stored.ok()) return is_stored.status();
    if (!*is_stored) {
      status = writer_.write(at, qiov.slice(done, bytes));
      if (!status.ok()) return status;
    }
    done += bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> CompressedWriter::put(
    GuestOffset guest, absl::Span<const uint8_t> compressed) {
  const Geometry& geometry = image_.geometry();
  FirstWrites::Ticket ticket = image_.first_writes().enter_alone(
      {guest.bytes, geometry.cluster_bytes()});
  const absl::StatusOr<SliceRef> slice = find_free_entry(guest);
  absl::StatusOr<bool> is_stored = false;
  ByteRange place;
  if (!slice.ok()) {
    is_stored = slice.status();
  } else if (*slice) {
    is_stored = store(compressed, &place);
  }
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), is_stored.ok() && *is_stored, [&] {
        image_.allocator().note_published(place);
        MetadataLock lock(&(*slice)->mutex);
        (*slice)->note_new_mapping();
        (*slice)->store64(
            geometry.index_in_slice(guest),
            L2Entry::compressed_at({place.offset}, place.length, geometry)
                .raw());
      });
  if (outcome == FirstWrites::Outcome::kUnpublished && !place.empty())
    image_.allocator().free_unpublished(place);
  return is_stored;
}

absl::StatusOr<SliceRef> CompressedWriter::find_free_entry(GuestOffset guest) {
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(guest);
  if (!slice.ok()) return slice;
  MetadataReaderLock lock(&(*slice)->mutex);
  const L2Entry old((*slice)->load64(image_.geometry().index_in_slice(guest)));
  if (old.kind() != ClusterKind::kUnallocated) return SliceRef();
  return slice;
}

// False if the place cannot be named.
absl::StatusOr<bool> CompressedWriter::store(
    absl::Span<const uint8_t> compressed, ByteRange* place) {
  const absl::StatusOr<Allocator::Allocation> allocation =
      image_.allocator().allocate_compressed(compressed.size());
  if (!allocation.ok()) {
    return absl::IsDataLoss(allocation.status())
               ? image_.corruption().report(allocation.status().message())
               : allocation.status();
  }
  *place = allocation->range;
  if (!L2Entry::can_name_compressed({place->offset}, image_.geometry()))
    return false;
  absl::Status status =
      image_.file().write(Purpose::kWriteCompressed, compressed.data(),
                          compressed.size(), place->offset);
  if (!status.ok()) return status;
  return true;
}

}  // namespace spindle::qcow

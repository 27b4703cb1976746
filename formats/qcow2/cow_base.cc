#include "formats/qcow2/cow_base.h"

#include <algorithm>

#include "formats/qcow2/subclusters.h"

namespace spindle::qcow2 {

bool CowBase::is_zero(L2Entry entry, ByteRange guest) const {
  while (!guest.empty()) {
    const KindRun run = kind_run(image_.geometry(), entry, {guest.offset});
    switch (run.kind) {
      case ClusterKind::kUnallocated:
        if (image_.has_backing_at({guest.offset})) return false;
        break;
      case ClusterKind::kZeroPlain:
      case ClusterKind::kZeroAllocated:
        break;
      case ClusterKind::kNormal:
      case ClusterKind::kCompressed:
        return false;
    }
    const uint64_t bytes = std::min(run.bytes, guest.length);
    guest = {guest.offset + bytes, guest.length - bytes};
  }
  return true;
}

absl::StatusOr<std::unique_ptr<uint8_t[]>> CowBase::read(L2Entry entry,
                                                         ByteRange guest) {
  std::unique_ptr<uint8_t[]> bytes(new uint8_t[guest.length]);
  for (uint64_t done = 0; done < guest.length;) {
    const GuestOffset at{guest.offset + done};
    const KindRun run = kind_run(image_.geometry(), entry, at);
    const uint64_t length = std::min(run.bytes, guest.length - done);
    const absl::Status status =
        read_run(run.kind, entry, at, IoVector(bytes.get() + done, length));
    if (!status.ok()) return status;
    done += length;
  }
  return bytes;
}

absl::Status CowBase::read_run(ClusterKind kind, L2Entry entry,
                               GuestOffset guest, const IoVector& qiov) {
  const uint64_t into_cluster =
      image_.geometry().offset_in_cluster(guest.bytes);
  switch (kind) {
    case ClusterKind::kUnallocated:
      return reader_.read_backing(Purpose::kCowRead, guest, qiov);
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      qiov.fill(0);
      return absl::OkStatus();
    case ClusterKind::kNormal:
      return image_.transfer().read(Purpose::kCowRead, qiov, guest,
                                    {entry.host().bytes + into_cluster});
    case ClusterKind::kCompressed: {
      absl::StatusOr<InflatedCopies::Copy> cluster = reader_.inflate(entry);
      if (!cluster.ok()) return cluster.status();
      qiov.copy_from(0, (*cluster)->data() + into_cluster, qiov.length_bytes());
      return absl::OkStatus();
    }
  }
  return absl::InternalError("unknown kind of cluster");
}

}  // namespace spindle::qcow2

#include "formats/qcow2/data_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace spindle::qcow2 {

absl::Status DataReader::read(GuestOffset guest, const IoVector& qiov) {
  const uint64_t length = qiov.length_bytes();
  for (uint64_t done = 0; done < length;) {
    const GuestOffset at{guest.bytes + done};
    MappedRun run;
    absl::Status status = image_.map().lookup(at, length - done, &run);
    if (!status.ok()) return status;
    // The usual case, one run, needs no copy of the vector.
    status = run.bytes == length
                 ? read_run(run, at, qiov)
                 : read_run(run, at, qiov.slice(done, run.bytes));
    if (!status.ok()) return status;
    done += run.bytes;
  }
  return absl::OkStatus();
}

absl::Status DataReader::read_run(const MappedRun& run, GuestOffset guest,
                                  const IoVector& qiov) {
  switch (run.kind) {
    case ClusterKind::kUnallocated:
      return read_backing(Purpose::kReadBackingAio, guest, qiov);
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      qiov.fill(0);
      return absl::OkStatus();
    case ClusterKind::kNormal:
      return image_.transfer().read(Purpose::kReadAio, qiov, guest, run.host);
    case ClusterKind::kCompressed: {
      absl::StatusOr<InflatedCopies::Copy> cluster = inflate(run.entry);
      if (!cluster.ok()) return cluster.status();
      qiov.copy_from(
          0,
          (*cluster)->data() + image_.geometry().offset_in_cluster(guest.bytes),
          qiov.length_bytes());
      return absl::OkStatus();
    }
  }
  return absl::InternalError("unknown kind of cluster");
}

absl::Status DataReader::read_backing(Purpose purpose, GuestOffset guest,
                                      const IoVector& qiov) {
  if (image_.has_backing_at(guest))
    return image_.backing()->read(purpose, qiov, guest.bytes);
  qiov.fill(0);
  return absl::OkStatus();
}

absl::StatusOr<InflatedCopies::Copy> DataReader::inflate(L2Entry entry) {
  if (InflatedCopies::Copy copy = image_.inflated().find(entry)) return copy;
  const CompressedExtent extent = entry.compressed(image_.geometry());
  std::vector<uint8_t> compressed(extent.bytes);
  absl::Status status =
      image_.file().read(Purpose::kReadCompressed, compressed.data(),
                         compressed.size(), extent.host.bytes);
  if (!status.ok()) return status;
  auto cluster =
      std::make_shared<std::vector<uint8_t>>(image_.geometry().cluster_bytes());
  status = inflate_cluster(image_.header().compression_type, compressed,
                           absl::MakeSpan(*cluster));
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat(status.message(), ", at host offset ", extent.host.bytes));
  }
  InflatedCopies::Copy copy = std::move(cluster);
  image_.inflated().insert(entry, copy);
  return copy;
}

uint64_t DataReader::try_read(GuestOffset guest, const IoVector& qiov) {
  const uint64_t length = qiov.length_bytes();
  uint64_t done = 0;
  while (done < length) {
    const GuestOffset at{guest.bytes + done};
    MappedRun run;
    if (!image_.map().try_lookup(at, length - done, &run)) return done;
    const uint64_t bytes =
        run.bytes == length
            ? try_read_run(run, at, qiov)
            : try_read_run(run, at, qiov.slice(done, run.bytes));
    done += bytes;
    if (bytes != run.bytes) return done;
  }
  return done;
}

uint64_t DataReader::try_read_run(const MappedRun& run, GuestOffset guest,
                                  const IoVector& qiov) {
  switch (run.kind) {
    case ClusterKind::kUnallocated:
      if (image_.has_backing_at(guest)) {
        return image_.backing()->try_read(Purpose::kReadBackingAio, qiov,
                                          guest.bytes);
      }
      [[fallthrough]];
    case ClusterKind::kZeroPlain:
    case ClusterKind::kZeroAllocated:
      qiov.fill(0);
      return qiov.length_bytes();
    case ClusterKind::kNormal:
      return image_.transfer().try_read(Purpose::kReadAio, qiov, guest,
                                        run.host);
    case ClusterKind::kCompressed:
      // Inflating takes long: not in the submitting call.
      return 0;
  }
  return 0;
}

}  // namespace spindle::qcow2

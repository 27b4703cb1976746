#include "formats/qcow2/data_reader.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "formats/cluster/inflate.h"
#include "formats/cluster/run_loop.h"

namespace spindle::qcow2 {

absl::Status DataReader::read(GuestOffset guest, const IoVector& qiov) {
  return for_each_run<MappedRun>(
      qiov,
      [&](uint64_t done, uint64_t left, MappedRun* run) {
        return image_.map().lookup({guest.bytes + done}, left, run);
      },
      [&](const MappedRun& run, uint64_t done, const IoVector& part) {
        return read_run(run, {guest.bytes + done}, part);
      });
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
  if (InflatedCopies::Copy copy = image_.inflated().find(entry.raw()))
    return copy;
  const CompressedExtent extent = entry.compressed(image_.geometry());
  std::vector<uint8_t> compressed(extent.bytes);
  absl::Status status =
      image_.file().read(Purpose::kReadCompressed, compressed.data(),
                         compressed.size(), extent.host.bytes);
  if (!status.ok()) return status;
  auto cluster =
      std::make_shared<std::vector<uint8_t>>(image_.geometry().cluster_bytes());
  status = inflate_cluster(image_.header().compression(), compressed,
                           absl::MakeSpan(*cluster));
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat(status.message(), ", at host offset ", extent.host.bytes));
  }
  InflatedCopies::Copy copy = std::move(cluster);
  image_.inflated().insert(entry.raw(), entry.references(image_.geometry()),
                           copy);
  return copy;
}

uint64_t DataReader::try_read(GuestOffset guest, const IoVector& qiov) {
  return try_each_run<MappedRun>(
      qiov,
      [&](uint64_t done, uint64_t left, MappedRun* run) {
        return image_.map().try_lookup({guest.bytes + done}, left, run);
      },
      [&](const MappedRun& run, uint64_t done, const IoVector& part) {
        return try_read_run(run, {guest.bytes + done}, part);
      });
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

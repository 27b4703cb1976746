#include "formats/qcow/data_reader.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "formats/cluster/compression_type.h"
#include "formats/cluster/inflate.h"
#include "formats/cluster/run_loop.h"

namespace spindle::qcow {

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
    case ClusterKind::kNormal:
      return image_.transfer().read(Purpose::kReadAio, qiov, guest, run.host);
    case ClusterKind::kCompressed:
      return read_compressed(run.entry, guest, qiov);
  }
  return absl::InternalError("unknown kind of cluster");
}

absl::Status DataReader::read_backing(Purpose purpose, GuestOffset guest,
                                      const IoVector& qiov) {
  uint64_t bytes = 0;
  if (image_.has_backing_at(guest)) {
    // The backing file may be longer than the disk.
    bytes = std::min(qiov.length_bytes(), image_.backing_end() - guest.bytes);
    absl::Status status = image_.backing()->read(
        purpose, bytes == qiov.length_bytes() ? qiov : qiov.slice(0, bytes),
        guest.bytes);
    if (!status.ok()) return status;
  }
  if (bytes < qiov.length_bytes())
    qiov.fill(bytes, qiov.length_bytes() - bytes, 0);
  return absl::OkStatus();
}

absl::Status DataReader::read_around(L2Entry entry, GuestOffset guest,
                                     const IoVector& qiov) {
  return entry.kind() == ClusterKind::kCompressed
             ? read_compressed(entry, guest, qiov)
             : read_backing(Purpose::kCowRead, guest, qiov);
}

absl::Status DataReader::read_compressed(L2Entry entry, GuestOffset guest,
                                         const IoVector& qiov) {
  const absl::StatusOr<InflatedCopies::Copy> cluster = inflate(entry);
  if (!cluster.ok()) return cluster.status();
  qiov.copy_from(
      0, (*cluster)->data() + image_.geometry().offset_in_cluster(guest.bytes),
      qiov.length_bytes());
  return absl::OkStatus();
}

absl::StatusOr<InflatedCopies::Copy> DataReader::inflate(L2Entry entry) {
  if (InflatedCopies::Copy copy = image_.inflated().find(entry.raw()))
    return copy;
  const ByteRange place = entry.place(image_.geometry());
  std::vector<uint8_t> compressed(place.length);
  absl::Status status =
      image_.file().read(Purpose::kReadCompressed, compressed.data(),
                         compressed.size(), place.offset);
  if (!status.ok()) return status;
  auto cluster =
      std::make_shared<std::vector<uint8_t>>(image_.geometry().cluster_bytes());
  status = inflate_cluster(CompressionType::kZlib, compressed,
                           absl::MakeSpan(*cluster));
  if (!status.ok()) {
    return absl::DataLossError(
        absl::StrCat(status.message(), ", at host offset ", place.offset));
  }
  InflatedCopies::Copy copy = std::move(cluster);
  // What lies there is never freed, and need not be discarded.
  image_.inflated().insert(entry.raw(), /*place=*/{}, copy);
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
        const uint64_t left = image_.backing_end() - guest.bytes;
        return image_.backing()->try_read(
            Purpose::kReadBackingAio,
            qiov.length_bytes() <= left ? qiov : qiov.slice(0, left),
            guest.bytes);
      }
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

}  // namespace spindle::qcow

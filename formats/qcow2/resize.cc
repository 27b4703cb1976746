#include "formats/qcow2/resize.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "formats/qcow2/data_clusters.h"
#include "formats/qcow2/image_size.h"
#include "formats/qcow2/preallocation.h"

namespace spindle::qcow2 {

absl::Status Resizer::resize(uint64_t size_bytes, Preallocation preallocation,
                             size_t snapshot_count) {
  absl::Status status = check(size_bytes, preallocation, snapshot_count);
  if (status.ok()) status = parts_.image->corruption().writes_allowed();
  if (status.ok()) status = parts_.image->rounds().settle();
  if (!status.ok()) return status;
  const uint64_t old_size = parts_.image->geometry().size_bytes;
  if (size_bytes > old_size) return grow(size_bytes, preallocation);
  return size_bytes < old_size ? shrink(size_bytes) : status;
}

absl::Status Resizer::check(uint64_t size_bytes, Preallocation preallocation,
                            size_t snapshot_count) const {
  const Geometry& geometry = parts_.image->geometry();
  absl::Status status = check_size(geometry, size_bytes);
  if (!status.ok()) return status;
  if (snapshot_count != 0 && geometry.version < 3) {
    constexpr char kWords[] = "Can't resize a v2 image which has snapshots";
    return with_qemu_words(absl::FailedPreconditionError(absl::StrCat(
                               kWords, ": it has ", snapshot_count)),
                           kWords);
  }
  if (size_bytes < geometry.size_bytes &&
      preallocation != Preallocation::kOff) {
    return absl::InvalidArgumentError(
        "Preallocation can't be used for shrinking an image");
  }
  const bool has_data = preallocation == Preallocation::kFalloc ||
                        preallocation == Preallocation::kFull;
  if (geometry.version < 3 && backing_is_longer() && !has_data &&
      size_bytes > align_up(geometry.size_bytes, geometry.cluster_bytes())) {
    return absl::UnimplementedError(
        absl::StrCat("Failed to zero out new clusters: the backing file, of ",
                     parts_.image->backing()->length_bytes(),
                     " bytes, would show through, and qcow2 version 2 has no "
                     "zero clusters"));
  }
  return status;
}

// ---- Growing ----------------------------------------------------------------

bool Resizer::backing_is_longer() const {
  ByteChannel* const backing = parts_.image->backing();
  return backing != nullptr &&
         backing->length_bytes() > parts_.image->geometry().size_bytes;
}

absl::Status Resizer::grow(uint64_t size_bytes, Preallocation preallocation) {
  Image& image = *parts_.image;
  const uint64_t old_data_file_bytes = data_file_bytes();
  absl::Status status =
      grow_l1(&image, image.geometry().l1_entries_for(size_bytes));
  if (!status.ok()) return status;
  status = fill_new_part(size_bytes, preallocation);
  // All of that is durable before the disk has it.
  if (status.ok()) status = image.rounds().settle();
  if (status.ok()) status = switch_size(&image, size_bytes);
  if (!status.ok() && !image.corruption().is_set()) {
    // Back to how it was, as far as that goes; what stays is counted.
    forget_behind_end().IgnoreError();
    image.rounds().settle().IgnoreError();
    cut_data_file(old_data_file_bytes).IgnoreError();
  }
  if (status.ok()) log_if_kept(cut_data_file(size_bytes));
  return status;
}

absl::Status Resizer::fill_new_part(uint64_t size_bytes,
                                    Preallocation preallocation) {
  const Geometry& geometry = parts_.image->geometry();
  absl::Status status = forget_behind_end();
  if (!status.ok()) return status;
  const uint64_t begin =
      align_up(geometry.size_bytes, geometry.cluster_bytes());
  const uint64_t end = align_up(size_bytes, geometry.cluster_bytes());
  const ByteRange clusters{begin, end - begin};
  // Data that are reserved or written hide the backing file as they are.
  const bool has_data = preallocation == Preallocation::kFalloc ||
                        preallocation == Preallocation::kFull;
  const bool hide = backing_is_longer();
  const DataClusters& data = parts_.image->data_clusters();
  if (data.is_external()) {
    // Whatever it has there, by accident or from an earlier, longer disk.
    status =
        reserve_zeroes(&data.channel(),
                       {geometry.size_bytes, size_bytes - geometry.size_bytes},
                       std::max(preallocation, Preallocation::kMetadata));
    if (!status.ok()) return status;
  }
  // As QEMU has it: of a raw data file everything is mapped.
  if (data.is_raw())
    preallocation = std::max(preallocation, Preallocation::kMetadata);
  if (preallocation != Preallocation::kOff)
    status =
        parts_.writer->preallocate(clusters, preallocation, hide && has_data);
  if (status.ok() && hide && !has_data)
    status = parts_.changer->mark_zero(clusters);
  return status.ok() ? zero_tail() : status;
}

uint64_t Resizer::data_file_bytes() const {
  const DataClusters& data = parts_.image->data_clusters();
  return data.is_external() ? data.channel().length_bytes() : 0;
}

absl::Status Resizer::cut_data_file(uint64_t length_bytes) {
  const DataClusters& data = parts_.image->data_clusters();
  // A device has the length that it has.
  if (!data.is_external() || data.channel().length_bytes() <= length_bytes ||
      !data.channel().child().capabilities().has(Capability::kGrows)) {
    return absl::OkStatus();
  }
  return data.channel().set_length(length_bytes, SetLengthMode::kExact);
}

absl::Status Resizer::zero_tail() {
  const Geometry& geometry = parts_.image->geometry();
  const uint64_t end = align_up(geometry.size_bytes, geometry.cluster_bytes());
  if (end == geometry.size_bytes) return absl::OkStatus();
  // Encryption knows whole sectors.
  const uint64_t begin = align_down(geometry.size_bytes, kSectorSizeBytes);
  std::vector<uint8_t> bytes(end - begin);
  const IoVector qiov(bytes.data(), bytes.size());
  absl::Status status = parts_.reader->read({begin}, qiov);
  if (!status.ok()) return status;
  const IoVector tail =
      qiov.slice(geometry.size_bytes - begin, end - geometry.size_bytes);
  // Where the disk ends nobody asked for the backing file; soon somebody would.
  if (tail.is_zero() && !backing_is_longer()) return status;
  tail.fill(0);
  return parts_.writer->write({begin}, qiov);
}

// ---- What lies behind the end -----------------------------------------------

ByteRange Resizer::rest_of_last_table() const {
  const Geometry& geometry = parts_.image->geometry();
  const uint64_t begin =
      align_up(geometry.size_bytes, geometry.cluster_bytes());
  return {begin, align_up(begin, geometry.l1_entry_coverage_bytes()) - begin};
}

absl::StatusOr<bool> Resizer::is_unmapped(ByteRange clusters) {
  if (parts_.image->l1()
          .l2_table(parts_.image->geometry().l1_index({clusters.offset}))
          .bytes == 0)
    return true;
  while (!clusters.empty()) {
    MappedRun run;
    absl::Status status =
        parts_.image->map().lookup({clusters.offset}, clusters.length, &run);
    if (!status.ok()) return status;
    // An extended entry of which nothing is allocated may name a cluster.
    if (run.kind != ClusterKind::kUnallocated || run.entry.has_host())
      return false;
    clusters = {clusters.offset + run.bytes, clusters.length - run.bytes};
  }
  return true;
}

absl::Status Resizer::forget_behind_end() {
  const ByteRange rest = rest_of_last_table();
  const Geometry& geometry = parts_.image->geometry();
  if (!rest.empty() &&
      geometry.l1_index({rest.offset}) < parts_.image->l1().entry_count()) {
    const absl::StatusOr<bool> unmapped = is_unmapped(rest);
    if (!unmapped.ok()) return unmapped.status();
    if (!*unmapped) {
      absl::Status status =
          parts_.changer->forget(rest, /*create_tables=*/false);
      if (!status.ok()) return status;
    }
  }
  absl::Status status = parts_.image->rounds().settle();
  if (!status.ok()) return status;
  return parts_.references->drop_active_tables(
      geometry.l1_entries_for(geometry.size_bytes));
}

// ---- Shrinking --------------------------------------------------------------

absl::Status Resizer::shrink(uint64_t size_bytes) {
  const uint64_t old_size = parts_.image->geometry().size_bytes;
  absl::Status status = switch_size(parts_.image, size_bytes);
  if (!status.ok()) return status;
  log_if_kept(give_up_cropped(old_size));
  log_if_kept(cut_data_file(size_bytes));
  return status;
}

void Resizer::log_if_kept(const absl::Status& given_up) const {
  if (given_up.ok() || !log_) return;
  log_(LogSeverity::kWarning,
       absl::StrCat("qcow2: the disk has its new size, but not all of what lay "
                    "behind its end was freed: ",
                    given_up.message()));
}

absl::Status Resizer::give_up_cropped(uint64_t old_size) {
  Image& image = *parts_.image;
  const Geometry& geometry = image.geometry();
  ByteRange rest = rest_of_last_table();
  const uint64_t old_end = align_up(old_size, geometry.cluster_bytes());
  rest.length = std::min(rest.end(), old_end) - rest.offset;
  absl::Status status;
  if (!rest.empty())
    status = parts_.changer->forget(rest, image.places_like_qemu());
  if (status.ok()) status = forget_behind_end();
  return status.ok() ? give_up_unused_space(&image) : status;
}

}  // namespace spindle::qcow2

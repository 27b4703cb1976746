#include "formats/qcow2/compressed_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "formats/cluster/compressor.h"
#include "formats/qcow2/l2_slice.h"

namespace spindle::qcow2 {

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
    // Behind the end of the image.
    std::memset(cluster.data() + bytes, 0, cluster_bytes - bytes);
    const absl::StatusOr<size_t> compressed_bytes = compress_cluster(
        image_.header().compression(), cluster, absl::MakeSpan(compressed));
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
  while (true) {
    absl::StatusOr<bool> is_stored = put_once(guest, compressed);
    if (!absl::IsResourceExhausted(is_stored.status())) return is_stored;
    // Freed clusters that still wait may be the room that the host lacks.
    const absl::StatusOr<bool> recovered = image_.allocator().recover_pending();
    if (!recovered.ok() || !*recovered) return is_stored;
  }
}

absl::StatusOr<bool> CompressedWriter::put_once(
    GuestOffset guest, absl::Span<const uint8_t> compressed) {
  const Geometry& geometry = image_.geometry();
  FirstWrites::Ticket ticket = image_.first_writes().enter_alone(
      {guest.bytes, geometry.cluster_bytes()});
  Plan plan;
  absl::Status status = inspect(guest, &plan);
  bool has_space = false;
  bool has_name = true;
  if (status.ok()) {
    absl::StatusOr<Allocator::PackedBytes> packed =
        image_.allocator().allocate_bytes(compressed.size());
    status = packed.status();
    if (status.ok()) {
      has_space = true;
      plan.packed = *packed;
      plan.pin = InFlight::Pin(&image_.in_flight(), packed->clusters);
      has_name = L2Entry::can_name_compressed(packed->host, geometry);
      status = check_place(plan, compressed.size());
    }
  }
  if (status.ok() && has_name) {
    plan.entry =
        L2Entry::compressed_at(plan.packed.host, compressed.size(), geometry);
    status = image_.file().write(Purpose::kWriteCompressed, compressed.data(),
                                 compressed.size(), plan.packed.host.bytes);
  }
  L2Entry old;
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), status.ok() && has_name, [&] {
        MetadataLock lock(&plan.slice->mutex);
        old = load_entry(*plan.slice.get(), geometry, plan.index);
        plan.slice->note_new_mapping();
        store_entry(plan.slice.get(), geometry, plan.index, plan.entry);
      });
  if (outcome == FirstWrites::Outcome::kPublished) {
    image_.pending().add_dropped(old.references(geometry));
    return true;
  }
  if (has_space) image_.allocator().free_unpublished(plan.packed.clusters);
  if (!status.ok()) return status;
  return false;
}

// Finds the entry that will change, and refuses to if it makes no sense.
absl::Status CompressedWriter::inspect(GuestOffset guest, Plan* plan) {
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(guest);
  if (!slice.ok()) return slice.status();
  plan->slice = *std::move(slice);
  plan->index = image_.map().index_in_slice(guest);
  absl::Status damaged;
  {
    MetadataReaderLock lock(&plan->slice->mutex);
    damaged = image_.map().check_entry(
        guest, load_entry(*plan->slice.get(), image_.geometry(), plan->index));
  }
  if (damaged.ok()) return damaged;
  return image_.corruption().report(damaged.message());
}

absl::Status CompressedWriter::check_place(const Plan& plan, uint64_t bytes) {
  const auto metadata =
      image_.extents().find_overlap({plan.packed.host.bytes, bytes});
  if (!metadata.has_value()) return absl::OkStatus();
  return image_.corruption().report(absl::StrCat(
      "a write of compressed data to host offset ", plan.packed.host.bytes,
      " would hit the image's ", metadata_kind_name(*metadata)));
}

}  // namespace spindle::qcow2

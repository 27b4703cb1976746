#include "formats/qcow/data_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/access.h"
#include "engine/checked_math.h"
#include "formats/cluster/run_loop.h"

namespace spindle::qcow {
namespace {

// FirstWrites counts in clusters.
HostClusters clusters_of(const Geometry& geometry, ByteRange host) {
  return {geometry.cluster_index(host.offset),
          geometry.cluster_index(host.length)};
}
ByteRange bytes_of(const Geometry& geometry, HostClusters host) {
  return {geometry.cluster_offset(host.first),
          geometry.cluster_offset(host.count)};
}

}  // namespace

absl::Status DataWriter::write(GuestOffset guest, const IoVector& qiov) {
  const uint64_t length = qiov.length_bytes();
  for (uint64_t done = 0; done < length;) {
    absl::Status status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    const GuestOffset at{guest.bytes + done};
    MappedRun run;
    status = image_.map().lookup(at, length - done, &run);
    if (!status.ok()) return status;
    if (run.kind == ClusterKind::kNormal) {
      status = run.bytes == length
                   ? write_in_place(run, at, qiov)
                   : write_in_place(run, at, qiov.slice(done, run.bytes));
      if (!status.ok()) return status;
      done += run.bytes;
      continue;
    }
    const absl::StatusOr<uint64_t> written =
        write_first(at, qiov.slice(done, length - done));
    if (!written.ok()) return written.status();
    done += *written;
  }
  return absl::OkStatus();
}

// ---- In place --------------------------------------------------------------

absl::Status DataWriter::check_place(ByteRange host) const {
  if (const auto metadata = image_.extents().find_overlap(host)) {
    return absl::DataLossError(
        absl::StrCat("a write of guest data to host offset ", host.offset,
                     " would hit the image's ", metadata_kind_name(*metadata)));
  }
  if (image_.allocator().is_beyond_end(host)) {
    return absl::DataLossError(
        absl::StrCat("guest data is mapped to host offset ", host.offset,
                     ", beyond the end of the file"));
  }
  return absl::OkStatus();
}

absl::Status DataWriter::write_in_place(const MappedRun& run, GuestOffset guest,
                                        const IoVector& qiov) {
  const absl::Status legal = check_place({run.host.bytes, run.bytes});
  if (!legal.ok()) return image_.corruption().report(legal.message());
  return image_.transfer().write(Purpose::kWriteAio, qiov, guest, run.host);
}

uint64_t DataWriter::try_write(GuestOffset guest, const IoVector& qiov) {
  if (image_.corruption().is_set()) return 0;
  return try_each_run<MappedRun>(
      qiov,
      [&](uint64_t done, uint64_t left, MappedRun* run) {
        return image_.map().try_lookup({guest.bytes + done}, left, run) &&
               run->kind == ClusterKind::kNormal &&
               check_place({run->host.bytes, run->bytes}).ok();
      },
      [&](const MappedRun& run, uint64_t, const IoVector& part) {
        return image_.transfer().try_write(Purpose::kWriteAio, part, run.host);
      });
}

// ---- First writes ----------------------------------------------------------

absl::StatusOr<uint64_t> DataWriter::write_first(GuestOffset guest,
                                                 const IoVector& qiov) {
  const Geometry& geometry = image_.geometry();
  const uint64_t length =
      std::min(qiov.length_bytes(), geometry.bytes_left_in_slice(guest));
  const ByteRange data{guest.bytes, length};
  const uint64_t begin = geometry.cluster_start(data.offset);
  const uint64_t end = align_up(data.end(), geometry.cluster_bytes());

  FirstWrites::Ticket ticket;
  switch (image_.first_writes().enter({begin, end - begin}, data,
                                      /*in_flight=*/nullptr, &ticket)) {
    case FirstWrites::Admission::kRetry:
      return 0;
    case FirstWrites::Admission::kJoined:
      return join(std::move(ticket), data, qiov.slice(0, length));
    case FirstWrites::Admission::kOwner:
      return own(std::move(ticket), data, qiov.slice(0, length));
  }
  return absl::InternalError("unknown admission");
}

absl::StatusOr<uint64_t> DataWriter::join(FirstWrites::Ticket ticket,
                                          ByteRange data,
                                          const IoVector& qiov) {
  const GuestOffset first_guest{ticket.guest_clusters().offset};
  const ByteRange host = bytes_of(image_.geometry(), ticket.host_clusters());
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(first_guest);
  absl::Status status = slice.status();
  if (status.ok()) {
    status = image_.transfer().write(Purpose::kClusterAlloc, qiov,
                                     {data.offset}, ticket.host());
  }
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), status.ok(),
      [&] { publish(slice->get(), first_guest, host); });
  if (outcome == FirstWrites::Outcome::kUnpublished)
    image_.allocator().free_unpublished(host);
  if (!status.ok()) return status;
  return qiov.length_bytes();
}

absl::StatusOr<uint64_t> DataWriter::own(FirstWrites::Ticket ticket,
                                         ByteRange data, const IoVector& qiov) {
  Plan plan;
  absl::Status status = inspect(data, &plan);
  const bool has_work = status.ok() && !plan.old_entries.empty();
  if (has_work) status = choose_host(&plan);
  const bool has_host = has_work && status.ok();
  if (has_host) {
    image_.first_writes().narrow(ticket, plan.clusters);
    if (needs_no_padding(plan)) {
      image_.first_writes().let_others_join(
          ticket, clusters_of(image_.geometry(), plan.host),
          /*each_publishes=*/false);
    }
    status = transfer(plan, qiov.slice(0, plan.data.length));
  }
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), has_host && status.ok(),
      [&] { publish(plan.slice.get(), {plan.clusters.offset}, plan.host); });
  if (outcome == FirstWrites::Outcome::kUnpublished && has_host)
    image_.allocator().free_unpublished(plan.host);
  if (!status.ok()) return status;
  return has_work ? plan.data.length : 0;
}

// Finds the clusters from the front of `data` on that have no place of their
// own.  Leaves plan->old_entries empty if the first has one by now.
absl::Status DataWriter::inspect(ByteRange data, Plan* plan) {
  const Geometry& geometry = image_.geometry();
  const GuestOffset guest{data.offset};
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(guest);
  if (!slice.ok()) return slice.status();
  plan->slice = *std::move(slice);
  const size_t first_index = geometry.index_in_slice(guest);
  const uint64_t begin = geometry.cluster_start(data.offset);
  const uint64_t cluster_count = geometry.clusters_for(data.end() - begin);
  absl::Status damaged;
  {
    MetadataReaderLock lock(&plan->slice->mutex);
    for (uint64_t i = 0; i < cluster_count; ++i) {
      const L2Entry entry(plan->slice->load64(first_index + i));
      damaged =
          image_.map().check_entry({begin + geometry.cluster_offset(i)}, entry);
      if (!damaged.ok() || entry.kind() == ClusterKind::kNormal) break;
      plan->old_entries.push_back(entry);
    }
  }
  if (!damaged.ok() && plan->old_entries.empty())
    return image_.corruption().report(damaged.message());
  plan->clusters = {begin, geometry.cluster_offset(plan->old_entries.size())};
  plan->data = {data.offset,
                std::min(data.end(), plan->clusters.end()) - data.offset};
  return absl::OkStatus();
}

absl::Status DataWriter::choose_host(Plan* plan) {
  const absl::StatusOr<Allocator::Allocation> allocation =
      image_.allocator().allocate(plan->clusters.length);
  if (!allocation.ok()) {
    return absl::IsDataLoss(allocation.status())
               ? image_.corruption().report(allocation.status().message())
               : allocation.status();
  }
  plan->host = allocation->range;
  // What is not written there decrypts to noise.
  plan->reads_as_zeroes =
      allocation->reads_as_zeroes && !image_.transfer().is_encrypted();
  return absl::OkStatus();
}

absl::Status DataWriter::transfer(const Plan& plan, const IoVector& qiov) {
  Padding padding;
  absl::Status status = read_padding(plan, &padding);
  if (!status.ok()) return status;
  const uint64_t first = plan.data.offset - padding.head_bytes;
  const HostOffset host{plan.host.offset + (first - plan.clusters.offset)};
  return image_.transfer().write(Purpose::kClusterAlloc, padding.around(qiov),
                                 {first}, host);
}

// ---- Padding ---------------------------------------------------------------

bool DataWriter::is_zero_around(L2Entry old, ByteRange guest) const {
  return old.kind() == ClusterKind::kUnallocated &&
         !image_.has_backing_at({guest.offset});
}

bool DataWriter::needs_no_padding(const Plan& plan) const {
  if (!plan.reads_as_zeroes) return false;
  for (size_t i = 0; i < plan.old_entries.size(); ++i) {
    const ByteRange cluster{
        plan.clusters.offset + image_.geometry().cluster_offset(i),
        image_.geometry().cluster_bytes()};
    if (!is_zero_around(plan.old_entries[i], cluster)) return false;
  }
  return true;
}

absl::Status DataWriter::read_padding(const Plan& plan, Padding* padding) {
  absl::Status status =
      read_side(plan, plan.old_entries.front(),
                {plan.clusters.offset, plan.data.offset - plan.clusters.offset},
                &padding->head, &padding->head_bytes);
  if (!status.ok()) return status;
  return read_side(plan, plan.old_entries.back(),
                   {plan.data.end(), plan.clusters.end() - plan.data.end()},
                   &padding->tail, &padding->tail_bytes);
}

absl::Status DataWriter::read_side(const Plan& plan, L2Entry old,
                                   ByteRange guest,
                                   std::unique_ptr<uint8_t[]>* bytes,
                                   uint64_t* count) {
  // What is zero already is not written again.
  if (guest.empty() || (plan.reads_as_zeroes && is_zero_around(old, guest)))
    return absl::OkStatus();
  std::unique_ptr<uint8_t[]> around(new uint8_t[guest.length]);
  const IoVector qiov(around.get(), guest.length);
  absl::Status status = reader_.read_around(old, {guest.offset}, qiov);
  if (!status.ok() || (plan.reads_as_zeroes && qiov.is_zero())) return status;
  *bytes = std::move(around);
  *count = guest.length;
  return absl::OkStatus();
}

// ---- Publishing ------------------------------------------------------------

void DataWriter::publish(Slice* slice, GuestOffset first_guest,
                         ByteRange host) {
  const Geometry& geometry = image_.geometry();
  const size_t first_index = geometry.index_in_slice(first_guest);
  image_.allocator().note_published(host);
  MetadataLock lock(&slice->mutex);
  slice->note_new_mapping();
  for (uint64_t i = 0; i < geometry.cluster_index(host.length); ++i) {
    const HostOffset cluster{host.offset + geometry.cluster_offset(i)};
    slice->store64(first_index + i, L2Entry::normal(cluster).raw());
  }
}

}  // namespace spindle::qcow

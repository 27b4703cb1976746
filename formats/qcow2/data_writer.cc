#include "formats/qcow2/data_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/range_tracker.h"
#include "formats/cluster/run_loop.h"
#include "formats/qcow2/data_clusters.h"
#include "formats/qcow2/l2_slice.h"
#include "formats/qcow2/subclusters.h"

namespace spindle::qcow2 {

absl::Status DataWriter::write(GuestOffset guest, const IoVector& qiov) {
  const uint64_t length = qiov.length_bytes();
  const DataClusters::Turn turn = image_.data_clusters().take_turn(
      {guest.bytes, length}, RangeTracker::Mode::kShared);
  Progress progress(&image_.pending());
  for (uint64_t done = 0; done < length;) {
    absl::Status status = image_.corruption().writes_allowed();
    if (!status.ok()) return status;
    const GuestOffset at{guest.bytes + done};
    MappedRun run;
    status = image_.map().lookup(at, length - done, &run);
    if (!status.ok()) return status;
    if (run.writable_in_place) {
      status = run.bytes == length
                   ? write_in_place(run, at, qiov)
                   : write_in_place(run, at, qiov.slice(done, run.bytes));
      if (!status.ok()) return status;
      done += run.bytes;
      progress.next_cluster =
          image_.geometry().cluster_index(run.host.bytes + run.bytes);
      continue;
    }
    absl::StatusOr<uint64_t> written = write_first(
        at, qiov.slice(done, length - done), run.entry.is_own(), &progress);
    if (!written.ok()) return written.status();
    done += *written;
  }
  return absl::OkStatus();
}

// ---- In place --------------------------------------------------------------

absl::Status DataWriter::write_in_place(const MappedRun& run, GuestOffset guest,
                                        const IoVector& qiov) {
  const absl::Status legal =
      image_.data_clusters().check_place({run.host.bytes, run.bytes});
  if (!legal.ok()) return image_.corruption().report(legal.message());
  return image_.transfer().write(Purpose::kWriteAio, qiov, guest, run.host);
}

uint64_t DataWriter::try_write(GuestOffset guest, const IoVector& qiov) {
  // In a raw data file it might have to wait for its turn.
  if (image_.corruption().is_set() || image_.data_clusters().is_raw()) return 0;
  return try_each_run<MappedRun>(
      qiov,
      [&](uint64_t done, uint64_t left, MappedRun* run) {
        return image_.map().try_lookup({guest.bytes + done}, left, run) &&
               run->writable_in_place &&
               image_.data_clusters()
                   .check_place({run->host.bytes, run->bytes})
                   .ok();
      },
      [&](const MappedRun& run, uint64_t, const IoVector& part) {
        return image_.transfer().try_write(Purpose::kWriteAio, part, run.host);
      });
}

// ---- First writes ----------------------------------------------------------

absl::StatusOr<uint64_t> DataWriter::write_first(GuestOffset guest,
                                                 const IoVector& qiov,
                                                 bool in_own_cluster,
                                                 Progress* progress) {
  const Geometry& geometry = image_.geometry();
  const uint64_t length =
      std::min(qiov.length_bytes(), image_.map().bytes_left_in_slice(guest));
  const ByteRange data{guest.bytes, length};
  const uint64_t unit =
      in_own_cluster ? geometry.subcluster_bytes() : geometry.cluster_bytes();
  const uint64_t begin = align_down(data.offset, unit);
  const ByteRange changed{begin, align_up(data.end(), unit) - begin};

  FirstWrites::Ticket ticket;
  switch (image_.first_writes().enter(changed, data, &image_.in_flight(),
                                      &ticket)) {
    case FirstWrites::Admission::kRetry:
      return 0;
    case FirstWrites::Admission::kJoined:
      progress->next_cluster = 0;
      return join(std::move(ticket), data, qiov.slice(0, length));
    case FirstWrites::Admission::kOwner:
      break;
  }
  return own(std::move(ticket), data, qiov, in_own_cluster, progress);
}

absl::StatusOr<uint64_t> DataWriter::join(FirstWrites::Ticket ticket,
                                          ByteRange data,
                                          const IoVector& qiov) {
  const GuestOffset first_guest{ticket.guest_clusters().offset};
  const HostClusters host = ticket.host_clusters();
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(first_guest);
  absl::Status status = slice.status();
  if (status.ok()) {
    status = image_.transfer().write(Purpose::kClusterAlloc, qiov,
                                     {data.offset}, ticket.host());
  }
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), status.ok(),
      [&] { publish(slice->get(), first_guest, host, data); });
  if (outcome == FirstWrites::Outcome::kUnpublished)
    image_.data_clusters().free_unpublished(host);
  if (!status.ok()) return status;
  return qiov.length_bytes();
}

absl::StatusOr<uint64_t> DataWriter::own(FirstWrites::Ticket ticket,
                                         ByteRange data, const IoVector& qiov,
                                         bool in_own_cluster,
                                         Progress* progress) {
  Plan plan;
  absl::Status status = inspect(data, in_own_cluster, &plan);
  const bool has_work = status.ok() && !plan.old_entries.empty();
  // If this attempt comes to nothing, the next one starts anywhere.
  const uint64_t wanted_cluster = std::exchange(progress->next_cluster, 0);
  if (has_work) status = choose_host(wanted_cluster, &plan);
  const bool has_host = has_work && status.ok();
  if (has_host) {
    image_.first_writes().narrow(
        ticket, plan.reuses_host ? plan.written : plan.clusters);
    if (!plan.reuses_host && needs_no_padding(plan)) {
      image_.first_writes().let_others_join(ticket, plan.host,
                                            image_.geometry().extended_l2);
    }
    status = transfer(plan, qiov.slice(0, plan.data.length));
  }
  const FirstWrites::Outcome outcome = image_.first_writes().finish(
      std::move(ticket), has_host && status.ok(), [&] {
        publish(plan.slice.get(), {plan.clusters.offset}, plan.host,
                plan.written);
      });
  if (outcome == FirstWrites::Outcome::kUnpublished && has_host &&
      !plan.reuses_host) {
    image_.data_clusters().free_unpublished(plan.host);
  }
  // Published, by this write or by one that joined it: the old entries are
  // gone.
  if (outcome == FirstWrites::Outcome::kPublished)
    drop_old_references(plan, progress);
  if (absl::IsResourceExhausted(status) && progress->give_up_dropped())
    return 0;
  if (has_host && absl::IsResourceExhausted(status)) {
    // Freed clusters that still wait may be the room that the host lacks.
    const absl::StatusOr<bool> recovered = image_.allocator().recover_pending();
    if (recovered.ok() && *recovered) return 0;
  }
  if (!status.ok()) return status;
  if (!has_work) return 0;
  progress->next_cluster = plan.host.end();
  return plan.data.length;
}

// Finds the clusters from the front of `data` on that one allocation can serve.
// Leaves plan->old_entries empty if the first needs none any more.
absl::Status DataWriter::inspect(ByteRange data, bool in_own_cluster,
                                 Plan* plan) {
  const Geometry& geometry = image_.geometry();
  const GuestOffset guest{data.offset};
  absl::StatusOr<SliceRef> slice = image_.map().slice_for_update(guest);
  if (!slice.ok()) return slice.status();
  plan->slice = *std::move(slice);
  const size_t first_index = image_.map().index_in_slice(guest);

  const uint64_t begin = geometry.cluster_start(data.offset);
  const uint64_t cluster_count = geometry.clusters_for(data.end() - begin);
  absl::Status damaged;
  {
    MetadataReaderLock lock(&plan->slice->mutex);
    for (uint64_t i = 0; i < cluster_count; ++i) {
      const L2Entry entry =
          load_entry(*plan->slice.get(), geometry, first_index + i);
      damaged =
          image_.map().check_entry({begin + geometry.cluster_offset(i)}, entry);
      if (!damaged.ok() || !needs_first_write(entry)) break;
      const bool reuses = can_reuse_host(entry);
      if (i == 0) plan->reuses_host = reuses;
      // The change covers subclusters only, and the cluster has been dropped
      // before it began; or whole clusters, and one has come.
      if (geometry.extended_l2 && reuses != in_own_cluster) break;
      if (reuses != plan->reuses_host) break;
      if (reuses && i > 0) {
        const uint64_t expected =
            plan->old_entries[0].host().bytes + geometry.cluster_offset(i);
        if (entry.host().bytes != expected) break;
      }
      plan->old_entries.push_back(entry);
    }
  }
  if (!damaged.ok() && plan->old_entries.empty()) {
    return image_.corruption().report(damaged.message());
  }
  plan->data = data;
  shorten(plan->old_entries.size(), plan);
  return absl::OkStatus();
}

// Leaves the first `cluster_count` clusters of the plan, and the data in them.
void DataWriter::shorten(size_t cluster_count, Plan* plan) const {
  const Geometry& geometry = image_.geometry();
  plan->old_entries.resize(cluster_count);
  plan->clusters = {geometry.cluster_start(plan->data.offset),
                    geometry.cluster_offset(cluster_count)};
  const uint64_t end = std::min(plan->data.end(), plan->clusters.end());
  plan->data.length = end - plan->data.offset;
  plan->written = plan->clusters;
  if (!geometry.extended_l2 || cluster_count == 0) return;
  const auto filled = [&](L2Entry entry, uint64_t cluster_start) {
    const SubclusterSpan touched =
        touched_span(geometry, cluster_start, plan->data.offset, end);
    return plan->reuses_host ? touched : span_to_copy(entry, touched);
  };
  const uint64_t last = plan->clusters.end() - geometry.cluster_bytes();
  const uint32_t bits = geometry.subcluster_bits();
  const uint64_t from =
      plan->clusters.offset +
      (uint64_t{filled(plan->old_entries.front(), plan->clusters.offset).first}
       << bits);
  const uint64_t to =
      last + (uint64_t{filled(plan->old_entries.back(), last).end} << bits);
  plan->written = {from, to - from};
}

bool DataWriter::needs_first_write(L2Entry entry) const {
  return image_.geometry().extended_l2 || !entry.writable_in_place();
}

bool DataWriter::can_reuse_host(L2Entry entry) const {
  // With subclusters pins say too little: writes to others of the cluster's may
  // be on their way.  None is needed for safety: this write holds the change of
  // its subclusters until it has published, so whoever would drop the host
  // cluster (a discard, a compressed write) waits for it; and a write from
  // before the zeroes has its pin, without which nobody gets the cluster.  Such
  // a write may show through what comes after it, for it is not over yet.
  if (image_.geometry().extended_l2) return entry.is_own();
  // A zero cluster that kept its host cluster gets its data there; but not
  // while a write from before the zeroes is on its way there, which would
  // show through once the cluster is published again.
  return entry.kind() == ClusterKind::kZeroAllocated && entry.copied() &&
         !image_.in_flight().is_pinned(
             image_.geometry().cluster_index(entry.host().bytes));
}

absl::Status DataWriter::choose_host(uint64_t next_cluster, Plan* plan) {
  const Geometry& geometry = image_.geometry();
  if (plan->reuses_host) {
    plan->host = {geometry.cluster_index(plan->old_entries[0].host().bytes),
                  plan->old_entries.size()};
    const absl::Status legal = image_.data_clusters().check_place(
        {geometry.cluster_offset(plan->host.first), plan->clusters.length});
    if (!legal.ok()) return image_.corruption().report(legal.message());
  } else {
    absl::StatusOr<Allocator::Allocation> allocation =
        image_.data_clusters().allocate({plan->clusters.offset},
                                        plan->old_entries.size(), next_cluster);
    if (!allocation.ok()) return allocation.status();
    plan->host = allocation->clusters;
    // What is not written there decrypts to noise.
    plan->reads_as_zeroes =
        allocation->reads_as_zeroes && !image_.transfer().is_encrypted();
    shorten(plan->host.count, plan);
  }
  // Whoever joins may publish, and a discard then free, before this write ends.
  plan->pin = InFlight::Pin(&image_.in_flight(), plan->host);
  return absl::OkStatus();
}

absl::Status DataWriter::transfer(const Plan& plan, const IoVector& qiov) {
  Padding padding;
  absl::Status status = read_padding(plan, &padding);
  if (!status.ok()) return status;
  const uint64_t into_run = plan.data.offset - plan.clusters.offset;
  const uint64_t host = image_.geometry().cluster_offset(plan.host.first) +
                        into_run - padding.head_bytes;
  return image_.transfer().write(Purpose::kClusterAlloc, padding.around(qiov),
                                 {plan.data.offset - padding.head_bytes},
                                 {host});
}

// ---- Padding ---------------------------------------------------------------

bool DataWriter::needs_no_padding(const Plan& plan) const {
  if (!plan.reads_as_zeroes) return false;
  for (size_t i = 0; i < plan.old_entries.size(); ++i) {
    const ByteRange cluster{
        plan.clusters.offset + image_.geometry().cluster_offset(i),
        image_.geometry().cluster_bytes()};
    if (!base_.is_zero(plan.old_entries[i], cluster)) return false;
    // Whoever publishes must give up what the old entry refers to: the owner.
    if (plan.old_entries[i].has_host()) return false;
  }
  return true;
}

absl::Status DataWriter::read_padding(const Plan& plan, Padding* padding) {
  const auto read_side = [&](L2Entry old_entry, ByteRange guest,
                             std::unique_ptr<uint8_t[]>* bytes,
                             uint64_t* count) -> absl::Status {
    if (guest.empty()) return absl::OkStatus();
    // The subcluster is there, but for others that are not.
    if (plan.reuses_host &&
        kind_run(image_.geometry(), old_entry, {guest.offset}).kind ==
            ClusterKind::kNormal) {
      return absl::OkStatus();
    }
    // What is zero already is not written again.
    if (plan.reads_as_zeroes && base_.is_zero(old_entry, guest))
      return absl::OkStatus();
    absl::StatusOr<std::unique_ptr<uint8_t[]>> base =
        base_.read(old_entry, guest);
    if (!base.ok()) return base.status();
    if (plan.reads_as_zeroes && IoVector(base->get(), guest.length).is_zero()) {
      return absl::OkStatus();
    }
    *bytes = *std::move(base);
    *count = guest.length;
    return absl::OkStatus();
  };
  absl::Status status =
      read_side(plan.old_entries.front(),
                {plan.written.offset, plan.data.offset - plan.written.offset},
                &padding->head, &padding->head_bytes);
  if (!status.ok()) return status;
  // A resize writes behind the end of the disk.
  const uint64_t end = std::max(
      plan.data.end(), image_.data_clusters().stored_end(plan.written.end()));
  return read_side(plan.old_entries.back(),
                   {plan.data.end(), end - plan.data.end()}, &padding->tail,
                   &padding->tail_bytes);
}

// ---- Publishing ------------------------------------------------------------

void DataWriter::publish(Slice* slice, GuestOffset first_guest,
                         HostClusters host, ByteRange written) {
  const Geometry& geometry = image_.geometry();
  const size_t first_index = image_.map().index_in_slice(first_guest);
  image_.data_clusters().note_published(host);
  MetadataLock lock(&slice->mutex);
  slice->note_new_mapping();
  for (uint64_t i = 0; i < host.count; ++i) {
    L2Entry entry = L2Entry::normal({geometry.cluster_offset(host.first + i)});
    if (geometry.extended_l2) {
      const L2Entry old = load_entry(*slice, geometry, first_index + i);
      const uint64_t start = first_guest.bytes + geometry.cluster_offset(i);
      entry = entry.with_bitmap(bitmap_of(old, start, written));
      if (entry == old) continue;
    }
    store_entry(slice, geometry, first_index + i, entry);
  }
}

// The bitmap of the cluster at `cluster_start` once `written` is.
uint64_t DataWriter::bitmap_of(L2Entry old, uint64_t cluster_start,
                               ByteRange written) const {
  const Geometry& geometry = image_.geometry();
  const uint64_t bitmap =
      old.kind() == ClusterKind::kCompressed ? 0 : old.bitmap();
  if (!written.overlaps({cluster_start, geometry.cluster_bytes()}))
    return bitmap;
  return bitmap_after_write(
      bitmap,
      touched_span(geometry, cluster_start, written.offset, written.end()));
}

void DataWriter::drop_old_references(const Plan& plan, Progress* progress) {
  if (plan.reuses_host) return;
  for (const L2Entry entry : plan.old_entries) {
    const HostClusters clusters = entry.references(image_.geometry());
    if (clusters.count != 0) progress->dropped.push_back(clusters);
  }
}

}  // namespace spindle::qcow2

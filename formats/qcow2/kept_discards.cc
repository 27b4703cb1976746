#include "formats/qcow2/kept_discards.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "engine/access.h"
#include "engine/byte_channel.h"
#include "formats/qcow2/table_entry.h"

namespace spindle::qcow2 {
namespace {

// First writes to a run wait while its holes are punched.
constexpr uint64_t kMostInRun = 64;

}  // namespace

void KeptDiscards::add(GuestOffset guest, HostOffset host) {
  absl::MutexLock lock(&mutex_);
  discards_[guest.bytes] = {host, ++last_};
}

void KeptDiscards::remove(GuestOffset guest) {
  absl::MutexLock lock(&mutex_);
  discards_.erase(guest.bytes);
}

uint64_t KeptDiscards::last() const {
  absl::MutexLock lock(&mutex_);
  return last_;
}

void KeptDiscards::end_round(uint64_t last) {
  absl::MutexLock lock(&mutex_);
  durable_ = std::max(durable_, last);
}

std::vector<ByteRange> KeptDiscards::durable_runs() const {
  const uint64_t cluster_bytes = parts_.geometry->cluster_bytes();
  std::vector<ByteRange> runs;
  absl::MutexLock lock(&mutex_);
  for (const auto& [guest, discard] : discards_) {
    if (discard.number > durable_) continue;
    if (runs.empty() || runs.back().end() != guest ||
        runs.back().length >= kMostInRun * cluster_bytes) {
      runs.push_back({guest, 0});
    }
    runs.back().length += cluster_bytes;
  }
  return runs;
}

std::vector<KeptDiscards::Hole> KeptDiscards::take_durable(ByteRange guest) {
  std::vector<Hole> taken;
  absl::MutexLock lock(&mutex_);
  for (auto it = discards_.lower_bound(guest.offset);
       it != discards_.end() && it->first < guest.end();) {
    if (it->second.number > durable_) {
      ++it;
      continue;
    }
    taken.push_back({{it->first}, it->second});
    it = discards_.erase(it);
  }
  return taken;
}

void KeptDiscards::put_back(const Hole& hole) {
  absl::MutexLock lock(&mutex_);
  discards_.emplace(hole.guest.bytes, hole.discard);
}

void KeptDiscards::punch() {
  for (const ByteRange& run : durable_runs()) {
    FirstWrites::Ticket ticket = parts_.first_writes->try_enter_alone(run);
    if (!ticket) continue;
    punch_run(run);
    parts_.first_writes->finish(std::move(ticket), /*succeeded=*/false, [] {});
  }
}

void KeptDiscards::punch_run(ByteRange guest) {
  const uint64_t cluster_bytes = parts_.geometry->cluster_bytes();
  std::vector<ByteRange> holes;
  for (const Hole& hole : take_durable(guest)) {
    const uint64_t host = hole.discard.host.bytes;
    // A write that comes late would fill the hole again, and for nothing.
    if (parts_.in_flight->is_pinned(parts_.geometry->cluster_index(host))) {
      put_back(hole);
      continue;
    }
    if (!is_hole(hole)) continue;
    if (holes.empty() || holes.back().end() != host) holes.push_back({host, 0});
    holes.back().length += cluster_bytes;
  }
  for (const ByteRange& hole : holes) {
    parts_.data_clusters->channel()
        .discard(Purpose::kClusterFree, hole)
        .IgnoreError();
  }
}

bool KeptDiscards::is_hole(const Hole& hole) const {
  const uint64_t cluster_bytes = parts_.geometry->cluster_bytes();
  MappedRun now;
  const absl::Status status =
      parts_.map->lookup(hole.guest, cluster_bytes, &now);
  return status.ok() && now.kind == ClusterKind::kZeroAllocated &&
         now.bytes == cluster_bytes && now.entry.is_own() &&
         now.entry.host().bytes == hole.discard.host.bytes &&
         // A damaged image's entry may name metadata.
         parts_.data_clusters->check_place({now.host.bytes, cluster_bytes})
             .ok();
}

}  // namespace spindle::qcow2

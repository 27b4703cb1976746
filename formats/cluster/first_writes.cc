#include "formats/cluster/first_writes.h"

#include <algorithm>

namespace spindle {

FirstWrites::Change* FirstWrites::find_overlap_locked(
    ByteRange clusters) const {
  for (const std::shared_ptr<Change>& change : changes_) {
    if (change->clusters.overlaps(clusters)) return change.get();
  }
  return nullptr;
}

FirstWrites::Ticket FirstWrites::add_locked(ByteRange clusters) {
  Ticket ticket;
  ticket.change_ = std::make_shared<Change>();
  ticket.change_->clusters = clusters;
  changes_.push_back(ticket.change_);
  return ticket;
}

void FirstWrites::remove_locked(const Change* change) {
  std::erase_if(changes_,
                [&](const auto& other) { return other.get() == change; });
  changed_.SignalAll();
}

FirstWrites::Admission FirstWrites::enter(ByteRange clusters, ByteRange data,
                                          InFlight* in_flight, Ticket* ticket) {
  MetadataLock lock(&mutex_);
  Change* const other = find_overlap_locked(clusters);
  if (other == nullptr) {
    *ticket = add_locked(clusters);
    return Admission::kOwner;
  }
  if (!other->joinable || !other->clusters.contains(data)) {
    mutex_.wait(&changed_);
    return Admission::kRetry;
  }
  const auto same = [&](const auto& change) { return change.get() == other; };
  ticket->change_ = *std::find_if(changes_.begin(), changes_.end(), same);
  ++other->users;
  ticket->guest_clusters_ = other->clusters;
  ticket->host_clusters_ = other->host;
  const uint64_t into = data.offset - other->clusters.offset;
  ticket->host_ =
      HostOffset{cluster_size_.cluster_offset(other->host.first) + into};
  if (in_flight == nullptr) return Admission::kJoined;
  // Once it is published a discard may free the clusters under the data.
  const uint64_t first = cluster_size_.cluster_index(ticket->host_.bytes);
  const uint64_t last =
      cluster_size_.cluster_index(ticket->host_.bytes + data.length - 1);
  ticket->pin_ = InFlight::Pin(in_flight, {first, last - first + 1});
  return Admission::kJoined;
}

FirstWrites::Ticket FirstWrites::enter_alone(ByteRange clusters) {
  MetadataLock lock(&mutex_);
  while (find_overlap_locked(clusters) != nullptr) mutex_.wait(&changed_);
  return add_locked(clusters);
}

FirstWrites::Ticket FirstWrites::try_enter_alone(ByteRange clusters) {
  MetadataLock lock(&mutex_);
  return find_overlap_locked(clusters) == nullptr ? add_locked(clusters)
                                                  : Ticket();
}

void FirstWrites::narrow(const Ticket& ticket, ByteRange clusters) {
  MetadataLock lock(&mutex_);
  ticket.change_->clusters = clusters;
  changed_.SignalAll();
}

void FirstWrites::let_others_join(const Ticket& ticket, HostClusters host,
                                  bool each_publishes) {
  MetadataLock lock(&mutex_);
  ticket.change_->host = host;
  ticket.change_->each_publishes = each_publishes;
  ticket.change_->joinable = true;
  changed_.SignalAll();
}

FirstWrites::Outcome FirstWrites::finish(Ticket ticket, bool succeeded,
                                         absl::FunctionRef<void()> publish) {
  MetadataLock lock(&mutex_);
  Change* const change = ticket.change_.get();
  --change->users;
  if (succeeded && (!change->published || change->each_publishes)) {
    publish();
    change->published = true;
    // From here on the mapping itself tells others where to write.
    if (!change->each_publishes) remove_locked(change);
  }
  const bool is_last = change->users == 0;
  if (is_last && (change->each_publishes || !change->published))
    remove_locked(change);
  if (change->published) return Outcome::kPublished;
  return is_last ? Outcome::kUnpublished : Outcome::kLeft;
}

}  // namespace spindle

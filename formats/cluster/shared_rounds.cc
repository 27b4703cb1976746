#include "formats/cluster/shared_rounds.h"

namespace spindle {

absl::Status SharedRounds::flush(RunRound run_round) {
  std::shared_ptr<Round> mine;
  {
    MetadataLock lock(&mutex_);
    mine = next_;
    ++waiting_;
    while (!mine->done && running_) mutex_.wait(&round_ended_);
    --waiting_;
    if (mine->done) return mine->status;
    // Nobody runs: this caller runs the round for all who wait for it.
    running_ = true;
    next_ = std::make_shared<Round>();
  }
  absl::Status status = run_round();
  MetadataLock lock(&mutex_);
  running_ = false;
  mine->done = true;
  mine->status = status;
  round_ended_.SignalAll();
  return status;
}

absl::Status SharedRounds::write_back(bool is_overfull, RunRound run_round) {
  if (writing_back_.exchange(true, std::memory_order_acq_rel)) {
    // Somebody is at it.
    return is_overfull ? flush(run_round) : absl::OkStatus();
  }
  absl::Status status = flush(run_round);
  writing_back_.store(false, std::memory_order_release);
  return status;
}

int SharedRounds::waiting_count() const {
  MetadataLock lock(&mutex_);
  return waiting_;
}

}  // namespace spindle

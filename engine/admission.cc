#include "engine/admission.h"

#include "absl/base/macros.h"

namespace spindle {

using State = AioRequest::State;

bool Admission::may_start_locked() const {
  const bool plugged = plugs_ > 0 && drains_ == 0;
  return !plugged && (limit_ == 0 || slots_taken_ < limit_);
}

void Admission::take_slot_locked(AioRequest* request) {
  if (limit_ == 0) return;
  request->has_slot = true;
  ++slots_taken_;
}

void Admission::update_locked() {
  const bool plugged = plugs_ > 0;
  Restraint restraint = plugged ? Restraint::kPlug : Restraint::kNone;
  if (limit_ != 0 || !held_.empty() || (!plugged && !waiting_.empty())) {
    restraint = Restraint::kOther;
  }
  if (held_generation_.has_value()) restraint = Restraint::kHold;
  restraint_.store(restraint, std::memory_order_seq_cst);
}

bool Admission::admit_or_queue(AioRequest* request) {
  absl::MutexLock lock(&mutex_);
  const bool held = held_generation_ == request->generation;
  if (!held && waiting_.empty() && may_start_locked()) {
    take_slot_locked(request);
    return true;
  }
  request->state.store(State::kWaiting, std::memory_order_release);
  (held ? held_ : waiting_).push_back(request);
  update_locked();
  return false;
}

void Admission::take_startable(RequestList* startable) {
  absl::MutexLock lock(&mutex_);
  while (!waiting_.empty() && may_start_locked()) {
    AioRequest* const request = waiting_.pop_front();
    State waiting = State::kWaiting;
    if (!request->state.compare_exchange_strong(waiting, State::kRunning,
                                                std::memory_order_acq_rel)) {
      continue;  // its canceller has claimed it
    }
    take_slot_locked(request);
    startable->push_back(request);
  }
  update_locked();
}

void Admission::give_back_slot() {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(slots_taken_ > 0);
  --slots_taken_;
}

void Admission::forget(AioRequest* request) {
  absl::MutexLock lock(&mutex_);
  if (waiting_.contains(request)) {
    waiting_.remove(request);
  } else if (held_.contains(request)) {
    held_.remove(request);
  }
  update_locked();
}

void Admission::plug() {
  absl::MutexLock lock(&mutex_);
  ++plugs_;
  update_locked();
}

void Admission::unplug() {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(plugs_ > 0);
  if (plugs_ > 0) --plugs_;
  update_locked();
}

void Admission::set_limit(size_t limit) {
  absl::MutexLock lock(&mutex_);
  limit_ = limit;
  update_locked();
}

void Admission::begin_drain() {
  absl::MutexLock lock(&mutex_);
  ++drains_;
}

void Admission::end_drain() {
  absl::MutexLock lock(&mutex_);
  --drains_;
}

void Admission::hold(Generation generation) {
  absl::MutexLock lock(&mutex_);
  ABSL_ASSERT(!held_generation_.has_value());
  held_generation_ = generation;
  update_locked();
}

void Admission::release() {
  absl::MutexLock lock(&mutex_);
  held_generation_.reset();
  while (AioRequest* request = held_.pop_front()) waiting_.push_back(request);
  update_locked();
}

bool Admission::holds(Generation generation) const {
  if (restraint_.load(std::memory_order_seq_cst) != Restraint::kHold)
    return false;
  absl::MutexLock lock(&mutex_);
  return held_generation_ == generation;
}

void Admission::wait_for_release() const {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Admission::nothing_held_locked));
}

}  // namespace spindle

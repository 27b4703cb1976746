#include "threadpool/scheduler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "threadpool/pool_check.h"

namespace spindle {
namespace {

// Wake-ups that one thread pays for; whoever is woken wakes the next.
constexpr size_t kWakesAtOnce = 2;

// How long the watcher sleeps: while something is stuck, as a rule, and after
// a long time without anything stuck.
constexpr absl::Duration kRampPause = absl::Microseconds(200);
constexpr absl::Duration kPause = absl::Microseconds(500);
constexpr absl::Duration kCalmPause = absl::Milliseconds(1);
constexpr uint32_t kCalmLooks = 20;
// Looks with nothing to watch before the watcher goes back to sleep.
constexpr uint32_t kIdleLooks = 4;

// The item that the calling thread is inside of, if it is inside one.
struct Inside {
  const Scheduler* scheduler = nullptr;
  ClaimedBatch* batch = nullptr;
};
thread_local Inside inside;

int64_t now_nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void relax_processor() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Scheduler::Scheduler(size_t width, size_t processors)
    : processors_(std::max<size_t>(processors, 1)),
      workers_(make_workers(width)),
      states_(width),
      searching_(width) {
  parked_.reserve(width);
}

std::vector<std::unique_ptr<Scheduler::Worker>> Scheduler::make_workers(
    size_t count) {
  std::vector<std::unique_ptr<Worker>> workers(count);
  for (size_t i = 0; i < count; ++i) workers[i] = std::make_unique<Worker>(i);
  return workers;
}

// ---- Queues
// -------------------------------------------------------------------

Scheduler::QueueId Scheduler::add_queue(size_t max_workers) {
  const size_t spare = std::max<size_t>(width() / 4, 1);
  const size_t default_cap = width() > spare ? width() - spare : 1;
  absl::MutexLock lock(&mu_);
  return new_queue_locked(max_workers == 0 ? default_cap
                                           : std::min(max_workers, width()));
}

Scheduler::QueueId Scheduler::add_turn_queue(QueueId partner) {
  absl::MutexLock lock(&mu_);
  const QueueId id = new_queue_locked(queues_[partner].cap);
  pool_check(queues_[partner].partner == kNone, "a queue has two partners");
  queues_[partner].partner = id;
  queues_[id].partner = partner;
  queues_[id].takes_turns = true;
  return id;
}

Scheduler::QueueId Scheduler::new_queue_locked(size_t cap) {
  QueueId id = queues_.size();
  if (free_ids_.empty()) {
    queues_.emplace_back();
  } else {
    id = free_ids_.back();
    free_ids_.pop_back();
    QueueState& reused = queues_[id];
    reused.estimate = {};
    reused.counters = {};
    reused.turns = {};
    reused.takes_turns = false;
    reused.removed = false;
  }
  queues_[id].cap = cap;
  return id;
}

void Scheduler::remove_queue(QueueId id) {
  absl::MutexLock lock(&mu_);
  queues_[id].removed = true;
  update_queue_locked(id);
}

size_t Scheduler::submit(QueueId id, absl::Span<WorkItem* const> items) {
  Wakes wakes;
  {
    absl::MutexLock lock(&mu_);
    if (stopping_) return 0;
    QueueState& queue = queues_[id];
    if (queue.takes_turns && queue.items.empty() && queue.active == 0)
      queue.turns.became_busy(now_nanoseconds());
    for (WorkItem* item : items) queue.items.push_back(item);
    queue.counters.submitted += items.size();
    queued_ += items.size();
    update_queue_locked(id);
    plan_wakes_locked(wakes);
  }
  wake(wakes);
  return items.size();
}

bool Scheduler::withdraw(QueueId id, WorkItem* item) {
  Wakes wakes;
  {
    absl::MutexLock lock(&mu_);
    QueueState& queue = queues_[id];
    const WorkList* holder = WorkList::holder(item);
    if (holder == nullptr) return false;
    if (holder == &queue.items) {
      queue.items.remove(item);
      --queued_;
    } else {
      const size_t claimant = holder->tag();
      if (claimant >= workers_.size() || states_[claimant].queue != id)
        return false;
      if (!workers_[claimant]->batch.withdraw(item)) return false;
    }
    ++queue.counters.withdrawn;
    update_queue_locked(id);
    plan_wakes_locked(wakes);
  }
  wake(wakes);
  return true;
}

bool Scheduler::notify_after_batch(
    const std::shared_ptr<BatchNotification>& notification) {
  if (!on_worker_thread()) return false;
  inside.batch->add(notification);
  return true;
}

WorkQueueCounters Scheduler::counters(QueueId id) const {
  absl::MutexLock lock(&mu_);
  WorkQueueCounters counters = queues_[id].counters;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (states_[i].queue == id)
      counters.ran += workers_[i]->batch.started_in_batch();
  }
  return counters;
}

bool Scheduler::on_worker_thread() const { return inside.scheduler == this; }

size_t Scheduler::batch_of(const QueueState& queue) {
  // Where one item hangs, the next one may as well.
  if (queue.stuck > 0) return 1;
  return queue.takes_turns && queue.turns.one_at_a_time()
             ? queue.estimate.turn_batch()
             : queue.estimate.batch();
}

bool Scheduler::waits_for_turn(const QueueState& queue) {
  return queue.takes_turns && queue.active > queue.stuck &&
         queue.turns.one_at_a_time();
}

size_t Scheduler::startable_locked(const QueueState& queue) const {
  size_t active = queue.active;
  if (queue.partner != kNone) active += queues_[queue.partner].active;
  if (cancelling_ || active >= queue.cap || waits_for_turn(queue)) return 0;
  size_t room = queue.cap - active;
  if (queue.takes_turns && queue.turns.one_at_a_time()) room = 1;
  return std::min(queue.items.size(), room);
}

void Scheduler::update_queue_locked(size_t id) {
  QueueState& queue = queues_[id];
  const size_t startable = startable_locked(queue);
  const size_t batch = batch_of(queue);
  const bool slow = queue.estimate.slow();
  const size_t slow_demand = slow ? startable : 0;
  const size_t short_demand =
      slow ? 0 : std::min(startable, (queue.items.size() + batch - 1) / batch);
  slow_demand_ = slow_demand_ - queue.slow_demand + slow_demand;
  short_demand_ = short_demand_ - queue.short_demand + short_demand;
  queue.slow_demand = slow_demand;
  queue.short_demand = short_demand;
  const bool held_back = !queue.items.empty() && waits_for_turn(queue);
  if (held_back != std::exchange(queue.held_back, held_back))
    held_back ? ++held_back_ : --held_back_;

  if (startable > 0 && !queue.in_ring) {
    queue.in_ring = true;
    queue.next_in_ring = kNone;
    (ring_first_ == kNone ? ring_first_ : queues_[ring_last_].next_in_ring) =
        id;
    ring_last_ = id;
    ring_hint_.store(true, std::memory_order_relaxed);
  }
  if (queue.removed && queue.items.empty() && queue.active == 0 &&
      !queue.in_ring) {
    free_queue_locked(id);
  }
}

void Scheduler::update_active_locked(size_t id) {
  const size_t partner = queues_[id].partner;
  update_queue_locked(id);
  if (partner != kNone) update_queue_locked(partner);
}

void Scheduler::free_queue_locked(size_t id) {
  QueueState& queue = queues_[id];
  queue.removed = false;
  if (queue.partner != kNone) queues_[queue.partner].partner = kNone;
  queue.partner = kNone;
  free_ids_.push_back(id);
}

size_t Scheduler::pop_ring_locked() {
  const size_t id = ring_first_;
  if (id == kNone) return kNone;
  ring_first_ = queues_[id].next_in_ring;
  queues_[id].in_ring = false;
  if (ring_first_ == kNone) ring_hint_.store(false, std::memory_order_relaxed);
  return id;
}

// ---- Workers
// ------------------------------------------------------------------

void Scheduler::work(size_t index) {
  Worker& worker = *workers_[index];
  for (;;) {
    Wakes wakes;
    const Step step = next_step(index, wakes);
    wake(wakes);
    switch (step) {
      case Step::kRun:
        run_batch(worker.batch);
        break;
      case Step::kSpin:
        spin();
        break;
      case Step::kPark:
        worker.parker.park();
        break;
      case Step::kLeave:
        return;
    }
  }
}

void Scheduler::run_batch(ClaimedBatch& batch) {
  inside = {.scheduler = this, .batch = &batch};
  while (WorkItem* item = batch.take()) item->run();
  inside = {};
  for (const auto& notification : batch.take_notifications())
    notification->batch_ended();
}

Scheduler::Step Scheduler::next_step(size_t index, Wakes& wakes) {
  const int64_t now = now_nanoseconds();
  absl::MutexLock lock(&mu_);
  WorkerState& state = states_[index];
  if (state.queue != kNone) settle_locked(index, now);
  const bool was_spinning = std::exchange(state.has_spun, false);
  if (was_spinning) spinning_ = false;

  Step step = Step::kPark;
  if (claim_locked(index, now)) {
    if (was_spinning) {
      spin_policy_.paid_off();
    } else if (state.idle_since != 0) {
      spin_policy_.slept(now - state.idle_since);
    }
    state.idle_since = 0;
    step = Step::kRun;
  } else if (leaving_.load(std::memory_order_relaxed)) {
    return Step::kLeave;
  } else if (!was_spinning && !spinning_ && processors_ > 1 &&
             spin_policy_.worth_it()) {
    spinning_ = state.has_spun = true;
    step = Step::kSpin;
  } else {
    if (was_spinning) spin_policy_.in_vain();
    if (state.idle_since == 0) state.idle_since = now;
    --searching_;
    parked_.push_back(index);
  }
  plan_wakes_locked(wakes);
  return step;
}

// Ends the batch of a worker, which then looks for the next.
void Scheduler::settle_locked(size_t index, int64_t now) {
  WorkerState& state = states_[index];
  const size_t id = std::exchange(state.queue, kNone);
  QueueState& queue = queues_[id];
  const uint64_t ran = workers_[index]->batch.end();
  queue.counters.ran += ran;
  if (ran > 0) queue.estimate.add(now - state.batch_began, ran);
  --queue.active;
  if (queue.takes_turns) settle_turn_locked(state, queue, now, ran);
  progress_ = true;
  if (std::exchange(state.stuck, false)) --queue.stuck;
  if (std::exchange(state.counted_short, false)) --short_workers_;
  if (std::exchange(state.counted_batch, false)) --batch_workers_;
  --busy_;
  ++searching_;
  update_active_locked(id);
}

void Scheduler::settle_turn_locked(WorkerState& state, QueueState& queue,
                                   int64_t now, uint64_t ran) {
  const int64_t nanoseconds = now - state.batch_began;
  if (!std::exchange(state.on_trial, false)) {
    const bool idle = queue.items.empty() && queue.active == 0;
    queue.turns.batch_ended(ran, nanoseconds, queue.estimate.slow(), idle, now);
  } else if (queue.turns.trial_ended(ran, nanoseconds, now)) {
    queue.estimate.restart(nanoseconds, ran);
  }
}

// Gives a searching worker a batch of the queue whose turn it is.
bool Scheduler::claim_locked(size_t index, int64_t now) {
  size_t id = pop_ring_locked();
  while (id != kNone && startable_locked(queues_[id]) == 0) {
    update_queue_locked(id);
    id = pop_ring_locked();
  }
  if (id == kNone) return false;

  QueueState& queue = queues_[id];
  WorkerState& state = states_[index];
  // Leave their share to the other workers that are on their way here.  A queue
  // whose items take turns has one worker: it leaves itself a half, so that
  // whoever waits for the first one's completions can submit more before it has
  // nothing left to do.
  const size_t sharers =
      queue.takes_turns ? std::max<size_t>(searching_, 2) : searching_;
  const size_t share = (queue.items.size() + sharers - 1) / sharers;
  state.on_trial = queue.takes_turns && queue.turns.on_trial();
  const size_t count = std::clamp<size_t>(
      share, 1, state.on_trial ? TurnTaking::kItemsOfTrial : batch_of(queue));
  workers_[index]->batch.claim(queue.items, count);
  queued_ -= count;
  ++queue.active;
  state.queue = id;
  state.batch_began = now;
  state.counted_short = !queue.estimate.slow();
  state.counted_batch = count > 1;
  short_workers_ += state.counted_short ? 1 : 0;
  batch_workers_ += state.counted_batch ? 1 : 0;
  --searching_;
  ++busy_;
  update_active_locked(id);
  return true;
}

void Scheduler::spin() const {
  constexpr int kLooksPerClock = 16;
  const int64_t until = now_nanoseconds() + SpinPolicy::kSpinNanoseconds;
  do {
    for (int i = 0; i < kLooksPerClock; ++i) {
      if (ring_hint_.load(std::memory_order_relaxed)) return;
      relax_processor();
    }
  } while (now_nanoseconds() < until);
}

// ---- Wake-ups
// -----------------------------------------------------------------

// Slow items want a worker each.  Short ones are left to the workers that are
// awake, and wake more only up to the number of processors.
size_t Scheduler::workers_wanted_locked() const {
  if (slow_demand_ >= searching_) {
    const size_t for_slow = slow_demand_ - searching_;
    const size_t enough = std::min(short_demand_, processors_);
    return for_slow + (enough > short_workers_ ? enough - short_workers_ : 0);
  }
  const size_t helping = searching_ - slow_demand_ + short_workers_;
  const size_t enough = std::min(short_demand_, processors_);
  return enough > helping ? enough - helping : 0;
}

bool Scheduler::wake_parked_locked(Wakes& wakes) {
  if (parked_.empty()) return false;
  wakes.parkers.push_back(&workers_[parked_.back()]->parker);
  parked_.pop_back();
  ++searching_;
  return true;
}

void Scheduler::plan_wakes_locked(Wakes& wakes) {
  if (stopping_ && queued_ == 0 && busy_ == 0) {
    leaving_.store(true, std::memory_order_relaxed);
    wakes.everyone = true;
    return;
  }
  for (size_t i = std::min(workers_wanted_locked(), kWakesAtOnce); i > 0; --i) {
    if (!wake_parked_locked(wakes)) break;
  }
  if (!watching_ && watch_needed_locked()) {
    watching_ = true;
    calm_looks_ = idle_looks_ = 0;
    wakes.parkers.push_back(&watcher_);
  }
}

// Something waits behind a running item.  A worker that searches will see it,
// and plan again; without one, only the watcher notices if nothing moves.
bool Scheduler::watch_needed_locked() const {
  if (batch_workers_ > 0 || held_back_ > 0) return true;
  return searching_ == 0 && short_demand_ > 0 && !parked_.empty();
}

void Scheduler::wake(const Wakes& wakes) {
  for (Parker* parker : wakes.parkers) parker->unpark();
  if (!wakes.everyone) return;
  for (const std::unique_ptr<Worker>& worker : workers_)
    worker->parker.unpark();
  watcher_.unpark();
}

// ---- The watcher
// --------------------------------------------------------------

void Scheduler::watch() {
  while (!leaving_.load(std::memory_order_relaxed)) {
    Wakes wakes;
    ClaimedBatch::Notifications overdue;
    const absl::Duration pause = look_around(wakes, overdue);
    wake(wakes);
    for (const auto& notification : overdue) notification->batch_ended();
    overdue.clear();
    if (pause == absl::InfiniteDuration()) {
      watcher_.park();
    } else {
      watcher_.park_for(pause);
    }
  }
}

absl::Duration Scheduler::look_around(Wakes& wakes,
                                      ClaimedBatch::Notifications& overdue) {
  absl::MutexLock lock(&mu_);
  if (!watching_) return absl::InfiniteDuration();
  const bool something_stuck = mark_stuck_locked(overdue);
  // Doubling ends when somebody has finished a batch since the last look.
  if (std::exchange(progress_, false) || !something_stuck) ramp_ = 1;
  if (something_stuck) ramp_up_locked(wakes);
  plan_wakes_locked(wakes);
  return pause_locked(something_stuck);
}

// Compares each busy worker with the last look; true if one is stuck.
bool Scheduler::mark_stuck_locked(ClaimedBatch::Notifications& overdue) {
  bool any = false;
  for (size_t i = 0; i < workers_.size(); ++i) {
    WorkerState& state = states_[i];
    if (state.queue == kNone) continue;
    const ClaimedBatch::Look look = workers_[i]->batch.look();
    if (look.started != std::exchange(state.started_seen, look.started))
      continue;
    any = true;
    if (look.waiting || !state.stuck) take_over_locked(i, overdue);
  }
  return any;
}

void Scheduler::take_over_locked(size_t index,
                                 ClaimedBatch::Notifications& overdue) {
  WorkerState& state = states_[index];
  QueueState& queue = queues_[state.queue];
  const size_t count = workers_[index]->batch.give_back(queue.items);
  queue.counters.taken_over += count;
  queued_ += count;
  for (auto& notification : workers_[index]->batch.take_notifications()) {
    overdue.push_back(std::move(notification));
  }
  if (!std::exchange(state.stuck, true)) ++queue.stuck;
  if (std::exchange(state.counted_short, false)) --short_workers_;
  if (std::exchange(state.counted_batch, false)) --batch_workers_;
  // It shows nothing any more.
  if (std::exchange(state.on_trial, false))
    queue.turns.trial_ended(0, 0, now_nanoseconds());
  update_queue_locked(state.queue);
}

// Nobody who is awake is going to take what is queued: wakes more workers,
// twice as many as the last time.
void Scheduler::ramp_up_locked(Wakes& wakes) {
  if (short_demand_ == 0 || short_workers_ + searching_ > slow_demand_) return;
  size_t woken = 0;
  while (woken < std::min(ramp_, short_demand_) && wake_parked_locked(wakes)) {
    ++woken;
  }
  ramp_ = std::min(ramp_ * 2, width());
}

absl::Duration Scheduler::pause_locked(bool something_stuck) {
  idle_looks_ = watch_needed_locked() ? 0 : idle_looks_ + 1;
  if (idle_looks_ > kIdleLooks) {
    watching_ = false;
    return absl::InfiniteDuration();
  }
  calm_looks_ = something_stuck ? 0 : calm_looks_ + 1;
  if (something_stuck) return kRampPause;
  return calm_looks_ > kCalmLooks ? kCalmPause : kPause;
}

// ---- Stop
// ---------------------------------------------------------------------

void Scheduler::stop(Executor::StopMode mode) {
  pool_check(!on_worker_thread(),
             "an item may not stop the executor that runs it");
  Wakes wakes;
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (mode == Executor::StopMode::kCancelQueued) {
      cancelling_ = true;
      reclaim_all_locked();
    }
    plan_wakes_locked(wakes);
  }
  wake(wakes);
  if (mode == Executor::StopMode::kRunQueued) return;
  while (WorkItem* item = pop_abandoned()) item->abandon();
}

// Returns what is claimed and not started to the queues, from which nobody
// claims any more.
void Scheduler::reclaim_all_locked() {
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (states_[i].queue == kNone) continue;
    queued_ += workers_[i]->batch.give_back(queues_[states_[i].queue].items);
  }
  for (size_t id = 0; id < queues_.size(); ++id) update_queue_locked(id);
}

WorkItem* Scheduler::pop_abandoned() {
  WorkItem* item = nullptr;
  Wakes wakes;
  {
    absl::MutexLock lock(&mu_);
    for (size_t id = 0; id < queues_.size() && item == nullptr; ++id) {
      item = queues_[id].items.pop_front();
      if (item == nullptr) continue;
      ++queues_[id].counters.abandoned;
      --queued_;
      update_queue_locked(id);
    }
    plan_wakes_locked(wakes);
  }
  wake(wakes);
  return item;
}

}  // namespace spindle

#include "engine/block_device_core.h"

#include <ctime>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"

namespace spindle {
namespace {

using State = AioRequest::State;

// How many requests are handed to the executor at a time.
constexpr size_t kBatchSize = 64;
// How often a request gives way to others in its range before it waits its
// turn on a worker, where nobody can overtake it.
constexpr int kMaxAttempts = 8;

int64_t now_nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// Bytes in counters: of what moves, or changes, data.
uint64_t counted_bytes(const RequestSpec& spec) {
  return spec.kind == RequestKind::kBlockStatus ? 0 : spec.length;
}

// Nothing: requests of that kind are not limited.
std::optional<ThrottleGroup::Direction> throttled_direction(RequestKind kind) {
  switch (kind) {
    case RequestKind::kRead:
      return ThrottleGroup::Direction::kRead;
    case RequestKind::kWrite:
    case RequestKind::kDiscard:
    case RequestKind::kWriteZeroes:
    case RequestKind::kWriteCompressed:
      return ThrottleGroup::Direction::kWrite;
    case RequestKind::kFlush:
    case RequestKind::kBlockStatus:
      break;
  }
  return std::nullopt;
}

// The requests of a chain, each of which may be gone as soon as it is claimed.
constexpr size_t kUsualChain = 16;
using Chain = absl::InlinedVector<AioRequest*, kUsualChain>;
Chain take_apart(AioRequest* first) {
  Chain chain;
  for (AioRequest* next = first; next != nullptr;) {
    chain.push_back(next);
    next = std::exchange(next->follower, nullptr);
  }
  return chain;
}

// What waits for a worker can be withdrawn, unless a part of it is on the disk
// already.
State state_in_queue(const AioRequest& request) {
  return request.changed_something ? State::kRunning : State::kQueued;
}

uint64_t next_device_id() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

BlockDevice::Core::Core(std::shared_ptr<BlockDriver> driver, Executor* executor,
                        BlockDeviceOptions options,
                        std::unique_ptr<CompletionQueue> own_queue)
    : driver_(std::move(driver)),
      executor_(executor),
      options_(std::move(options)),
      id_(next_device_id()),
      has_threads_(executor->width() > 0),
      own_queue_(std::move(own_queue)),
      queue_(own_queue_ != nullptr ? own_queue_.get()
                                   : options_.completion_queue),
      sink_(queue_->sink()),
      sink_notification_(sink_),
      work_(executor->make_queue(
          {.name = options_.name, .max_workers = options_.max_workers})),
      turns_(work_->make_turn_queue()),
      callbacks_(executor->make_queue(
          {.name = absl::StrCat(options_.name, " callbacks"),
           .max_workers = 0})),
      requests_(driver_.get(), options_.cache_mode, options_.detect_zeroes),
      admission_(options_.max_in_flight) {
  if (!has_threads_) sink_->add_helper(executor_);
  if (auto* source = dynamic_cast<ThrottleSource*>(driver_.get())) {
    throttle_ =
        std::make_unique<ThrottleGroup::Member>(source->take_over_throttle());
  }
}

BlockDevice::Core::~Core() {
  if (!has_threads_) sink_->remove_helper(executor_);
  if (!fork_guard_.crossed_fork()) in_flight_.wait_until_abandoned();
  // Whoever started the last throttled request may still be in here.  The
  // group's thread does not exist in a fork, so there the group must stay.
  if (fork_guard_.crossed_fork()) {
    static_cast<void>(throttle_.release());
  } else {
    throttle_.reset();
  }
}

absl::Status BlockDevice::Core::refuse_in_fork() const {
  if (!fork_guard_.crossed_fork()) return absl::OkStatus();
  return absl::UnavailableError(
      "this process was forked off after the device was opened");
}

absl::Status BlockDevice::Core::check_open() const {
  if (absl::Status forked = refuse_in_fork(); !forked.ok()) return forked;
  if (closed_.load(std::memory_order_seq_cst)) {
    return absl::FailedPreconditionError("the device is closed");
  }
  return absl::OkStatus();
}

absl::Status BlockDevice::Core::check(const RequestSpec& spec) const {
  absl::Status status = check_open();
  return status.ok() ? requests_.check(spec) : status;
}

// ---- On the caller's thread -------------------------------------------------

Generation BlockDevice::Core::enter_here() {
  for (;;) {
    const Generation generation = in_flight_.enter();
    // Whoever holds requests back waits for the request whose callback this is.
    if (!admission_.holds(generation) || CallbackScope::inside_counted(id_))
      return generation;
    in_flight_.leave(generation);
    admission_.wait_for_release();
  }
}

absl::Status BlockDevice::Core::run_here(const RequestSpec& spec,
                                         const IoVector& qiov,
                                         BlockStatus* block_status) {
  const int64_t begin = now_nanoseconds();
  const Generation generation = enter_here();
  absl::Status status = check(spec);
  if (status.ok()) {
    if (throttle_ != nullptr) wait_for_throttle(spec);
    RequestExecutor::Attempt attempt;
    status = requests_.run(spec, qiov, 0, block_status, &attempt);
    release_ranges(spec.kind);
  }
  counters_.count(spec.kind, counted_bytes(spec), status,
                  now_nanoseconds() - begin);
  in_flight_.leave_here(generation);
  return status;
}

// ---- Submission -------------------------------------------------------------

AioHandle BlockDevice::Core::submit(AioRequest* request) {
  AioHandle handle(request);
  request->owner = this;
  request->device_id = id_;
  request->submitted_nanoseconds = now_nanoseconds();
  request->generation = in_flight_.enter();
  if (!request->has_callback()) sink_->expect();
  // While the device is being changed, what it will be counts: begin() asks.
  const bool held = admission_.holds(request->generation);
  absl::Status status = held ? check_open() : check(request->spec);
  if (!status.ok()) {
    request->state.store(State::kRunning, std::memory_order_relaxed);
    complete(request, std::move(status), Where::kCaller);
  } else if (throttle_ != nullptr && !pass_throttle(request)) {
    return handle;
  } else if (!held && may_run_in_place(request) && run_in_place(request)) {
    finish(request, absl::OkStatus());
    deliver(request, Where::kReap, /*has_room=*/false);
  } else if (!held &&
             (admission_.unrestrained() || request->changed_something)) {
    start(request);
  } else {
    admit(request, /*may_run_in_place=*/true);
  }
  return handle;
}

void BlockDevice::Core::admit(AioRequest* request, bool may_run_in_place) {
  if (!admission_.admit_or_queue(request)) return;
  if (begin(request, may_run_in_place)) {
    AioRequest* const one[] = {request};
    if (!submit_batch(one)) return;
  }
  start_waiting(/*may_run_in_place=*/false);
}

// ---- The throttle -----------------------------------------------------------

bool BlockDevice::Core::pass_throttle(AioRequest* request) {
  const std::optional<ThrottleGroup::Direction> direction =
      throttled_direction(request->spec.kind);
  if (!direction.has_value()) return true;
  if (!has_threads_) {  // whoever runs it waits
    request->tried_in_place = true;
    return true;
  }
  request->waits_for_throttle = true;
  request->state.store(State::kWaiting, std::memory_order_release);
  if (!throttle_->admit_or_queue(request, *direction, request->spec.length))
    return false;
  request->waits_for_throttle = false;
  request->state.store(State::kSubmitting, std::memory_order_release);
  return true;
}

void BlockDevice::Core::wait_for_throttle(const RequestSpec& spec) {
  const std::optional<ThrottleGroup::Direction> direction =
      throttled_direction(spec.kind);
  if (direction.has_value()) throttle_->wait_here(*direction, spec.length);
}

void BlockDevice::Core::start_throttled(AioRequest* request) {
  request->waits_for_throttle = false;
  if (!admission_.unrestrained()) {
    admit(request, /*may_run_in_place=*/false);
  } else if (begin(request, /*may_run_in_place=*/false)) {
    start(request);
  }
}

bool BlockDevice::Core::may_run_in_place(AioRequest* request) {
  if (!options_.run_in_place || !admission_.unrestrained_in_place())
    return false;
  if (admission_.unrestrained() || !has_threads_) return true;
  // Nobody would do it sooner.
  if (requests_.takes_turns(request->spec)) return true;
  // Plugged.  Threads that share a plug may exceed its share by a few.
  const size_t so_far = in_place_in_plug_.load(std::memory_order_relaxed);
  in_place_in_plug_.store(so_far + 1, std::memory_order_relaxed);
  if (so_far < options_.max_in_place_per_plug) return true;
  request->tried_in_place = true;
  return false;
}

// Nothing restrains the device; the request was checked a moment ago, and
// cannot run in place.
void BlockDevice::Core::start(AioRequest* request) {
  request->state.store(state_in_queue(*request), std::memory_order_release);
  if (!queue_of(*request).submit(request)) refuse(request);
}

bool BlockDevice::Core::run_in_place(AioRequest* request) {
  const RequestKind kind = request->spec.kind;
  if (request->tried_in_place) return false;
  request->tried_in_place = true;
  if (kind != RequestKind::kRead && kind != RequestKind::kWrite) return false;
  request->done_bytes = requests_.try_in_place(request->spec, request->qiov);
  release_ranges(kind);
  request->changed_something =
      kind == RequestKind::kWrite && request->done_bytes > 0;
  if (request->done_bytes < request->spec.length) return false;
  request->ran_in_place = true;
  return true;
}

bool BlockDevice::Core::begin(AioRequest* request, bool may_run_in_place) {
  // Again, or at last: the device may have been changed meanwhile.
  absl::Status status = refuse_in_fork();
  if (status.ok()) status = requests_.check(request->spec);
  const bool in_place = status.ok() && may_run_in_place &&
                        options_.run_in_place && run_in_place(request);
  if (status.ok() && !in_place) return true;
  finish(request, std::move(status));
  deliver(request, in_place ? Where::kReap : Where::kCaller,
          /*has_room=*/false);
  return false;
}

// A request that ends here makes room for another, so it goes round until
// nothing has ended.
void BlockDevice::Core::start_waiting(bool may_run_in_place) {
  if (admission_.unrestrained()) return;
  for (bool again = true; again;) {
    again = false;
    RequestList startable;
    admission_.take_startable(&startable);
    absl::InlinedVector<AioRequest*, kBatchSize> batch;
    while (AioRequest* request = startable.pop_front()) {
      if (!begin(request, may_run_in_place)) {
        again = true;
        continue;
      }
      batch.push_back(request);
      if (batch.size() < kBatchSize && !startable.empty()) continue;
      if (submit_batch(batch)) again = true;
      batch.clear();
    }
    if (submit_batch(batch)) again = true;
  }
}

bool BlockDevice::Core::submit_batch(absl::Span<AioRequest* const> requests) {
  absl::InlinedVector<WorkItem*, kBatchSize> items, in_turn;
  AioRequest* first = nullptr;
  AioRequest* last = nullptr;
  for (AioRequest* request : requests) {
    request->state.store(state_in_queue(*request), std::memory_order_release);
    if (last != nullptr && joins(*first, *last, *request)) {
      last->follower = request;
      last = request;
      continue;
    }
    first = last = request;
    (&queue_of(*request) == work_.get() ? items : in_turn).push_back(request);
  }
  const bool has_room = submit_to(*work_, items);
  return submit_to(*turns_, in_turn) || has_room;
}

bool BlockDevice::Core::joins(const AioRequest& first, const AioRequest& last,
                              const AioRequest& next) const {
  return !first.has_callback() && !next.has_callback() &&
         first.done_bytes == 0 && next.done_bytes == 0 &&
         next.spec.offset + next.spec.length - first.spec.offset <=
             options_.merge_bytes &&
         requests_.adjoin(last.spec, next.spec) && throttle_ == nullptr;
}

void BlockDevice::Core::resubmit_chain(AioRequest* first) {
  if (!queue_of(*first).submit(first) && refuse_chain(first))
    start_waiting(/*may_run_in_place=*/false);
}

bool BlockDevice::Core::submit_to(WorkQueue& queue,
                                  absl::Span<WorkItem* const> items) {
  if (items.empty()) return false;
  bool has_room = false;
  for (size_t i = queue.submit_batch(items); i < items.size(); ++i) {
    if (refuse_chain(static_cast<AioRequest*>(items[i]))) has_room = true;
  }
  return has_room;
}

void BlockDevice::Core::unplug() {
  in_place_in_plug_.store(0, std::memory_order_relaxed);
  admission_.unplug();
  start_waiting(/*may_run_in_place=*/true);
}

void BlockDevice::Core::set_max_in_flight(size_t limit) {
  admission_.set_limit(limit);
  start_waiting(/*may_run_in_place=*/false);
}

// ---- Running and cancelling -------------------------------------------------

bool BlockDevice::Core::claim_from_queue(AioRequest* request, bool* cancelled) {
  *cancelled = false;
  State state = State::kQueued;
  if (request->state.compare_exchange_strong(state, State::kRunning,
                                             std::memory_order_acq_rel)) {
    return true;
  }
  if (state == State::kRunning) return true;  // state_in_queue()
  if (state == State::kCancelling &&
      request->state.compare_exchange_strong(state, State::kArrived,
                                             std::memory_order_acq_rel)) {
    return false;
  }
  *cancelled = true;
  request->state.store(State::kWithdrawn, std::memory_order_release);
  return true;
}

void BlockDevice::Core::run_request(AioRequest* request) {
  if (request->has_result) {
    deliver(request, Where::kWorker, /*has_room=*/false);
    return;
  }
  if (request->follower != nullptr) {
    run_chain(request);
    return;
  }
  if (claim_to_run(request)) run_claimed(request);
}

bool BlockDevice::Core::claim_to_run(AioRequest* request) {
  bool cancelled = false;
  if (!claim_from_queue(request, &cancelled)) return false;
  if (!cancelled) return true;
  complete(request, absl::CancelledError("the request was withdrawn"),
           Where::kWorker);
  return false;
}

void BlockDevice::Core::run_claimed(AioRequest* request) {
  if (throttle_ != nullptr && !has_threads_) wait_for_throttle(request->spec);
  absl::Status status;
  if (run_or_park(request, &status))
    complete(request, std::move(status), Where::kWorker);
}

void BlockDevice::Core::run_chain(AioRequest* first) {
  const Chain chain = take_apart(first);
  Chain claimed;
  for (AioRequest* request : chain) {
    if (claim_to_run(request)) claimed.push_back(request);
  }
  if (claimed.size() < chain.size() || !run_as_one(claimed)) {
    for (AioRequest* request : claimed) run_claimed(request);
    return;
  }
  bool has_room = false;
  for (AioRequest* request : claimed) {
    if (finish(request, absl::OkStatus())) has_room = true;
  }
  push_to_sink(claimed, Where::kWorker, has_room);
}

bool BlockDevice::Core::run_as_one(absl::Span<AioRequest* const> requests) {
  RequestSpec spec = requests.front()->spec;
  IoVector qiov = requests.front()->qiov;
  for (AioRequest* request : requests.subspan(1)) {
    spec.length += request->spec.length;
    qiov.append(request->qiov);
  }
  RequestExecutor::Attempt attempt{.may_wait = false};
  const absl::Status status = requests_.run(spec, qiov, 0, nullptr, &attempt);
  release_ranges(spec.kind);
  if (attempt.gave_up) return false;
  // What has failed may have written a part of any of them.
  if (!status.ok() && spec.kind == RequestKind::kWrite) {
    for (AioRequest* request : requests) request->changed_something = true;
  }
  return status.ok();
}

bool BlockDevice::Core::run_or_park(AioRequest* request, absl::Status* status) {
  for (;;) {
    const uint64_t seen = range_waiters_.releases();
    RequestExecutor::Attempt attempt{.may_wait =
                                         request->attempts++ >= kMaxAttempts ||
                                         request->changed_something};
    *status = requests_.run(request->spec, request->qiov, request->done_bytes,
                            &request->block_status, &attempt);
    if (!attempt.gave_up) {
      release_ranges(request->spec.kind);
      return true;
    }
    if (range_waiters_.park(request, seen)) return false;
  }
}

void BlockDevice::Core::release_ranges(RequestKind kind) {
  if (!RequestExecutor::holds_ranges(kind)) return;
  RequestList retry;
  range_waiters_.release(&retry);
  if (retry.empty()) return;
  absl::InlinedVector<AioRequest*, kBatchSize> batch;
  while (AioRequest* request = retry.pop_front()) batch.push_back(request);
  if (submit_batch(batch)) start_waiting(/*may_run_in_place=*/false);
}

void BlockDevice::Core::abandon_request(AioRequest* first) {
  if (first->has_result) {
    push_to_sink(first, Where::kReap, /*has_room=*/false);
    return;
  }
  for (AioRequest* request : take_apart(first)) {
    bool cancelled = false;
    if (!claim_from_queue(request, &cancelled)) continue;
    complete(request,
             request->changed_something
                 ? absl::UnavailableError(
                       "the executor has stopped; a part of the write is done")
                 : absl::CancelledError("the executor has stopped"),
             Where::kReap);
  }
}

bool BlockDevice::Core::refuse_chain(AioRequest* first) {
  bool has_room = false;
  for (AioRequest* request : take_apart(first)) {
    if (refuse(request)) has_room = true;
  }
  return has_room;
}

// The executor did not take it: it has stopped, or this process is a fork.
bool BlockDevice::Core::refuse(AioRequest* request) {
  bool cancelled = false;
  if (!claim_from_queue(request, &cancelled)) return false;
  absl::Status status =
      cancelled ? absl::CancelledError("the request was withdrawn")
                : absl::UnavailableError("the executor takes no more work");
  const bool has_room = finish(request, std::move(status));
  deliver(request, Where::kReap, /*has_room=*/false);
  return has_room;
}

void BlockDevice::Core::cancel_request(AioRequest* request, bool was_queued) {
  if (was_queued) {
    State cancelling = State::kCancelling;
    if (queue_of(*request).withdraw(request)) {
      if (request->follower != nullptr)
        resubmit_chain(std::exchange(request->follower, nullptr));
    } else if (request->state.compare_exchange_strong(
                   cancelling, State::kCancelled, std::memory_order_acq_rel)) {
      // Too late to withdraw it, and no worker has arrived: one will.
      return;
    }
  } else if (request->waits_for_throttle) {
    throttle_->forget(request);
  } else if (request->waits_for_range) {
    range_waiters_.forget(request);
  } else {
    admission_.forget(request);
    start_waiting(/*may_run_in_place=*/false);
  }
  request->state.store(State::kWithdrawn, std::memory_order_release);
  complete(request, absl::CancelledError("the request was withdrawn"),
           Where::kCaller);
}

// ---- Completion -------------------------------------------------------------

void BlockDevice::Core::complete(AioRequest* request, absl::Status status,
                                 Where where) {
  const bool has_room = finish(request, std::move(status));
  deliver(request, where, has_room);
}

bool BlockDevice::Core::finish(AioRequest* request, absl::Status status) {
  request->status = std::move(status);
  counters_.count(request->spec.kind, counted_bytes(request->spec),
                  request->status,
                  now_nanoseconds() - request->submitted_nanoseconds,
                  request->ran_in_place);
  if (!request->has_slot) return false;
  request->has_slot = false;
  admission_.give_back_slot();
  return true;
}

void BlockDevice::Core::deliver(AioRequest* request, Where where,
                                bool has_room) {
  if (!request->has_callback() || !has_threads_ || where == Where::kReap) {
    push_to_sink(request, where, has_room);
    return;
  }
  if (has_room) start_waiting(/*may_run_in_place=*/false);
  if (where == Where::kCaller) {
    request->has_result = true;
    if (!callbacks_->submit(request))
      push_to_sink(request, Where::kReap, false);
    return;
  }
  const Generation generation = request->generation;
  request->state.store(State::kDone, std::memory_order_release);
  request->run_callback(/*counted=*/true);
  request->drop_reference();
  in_flight_.leave(generation);
}

void BlockDevice::Core::push_to_sink(AioRequest* request, Where where,
                                     bool has_room) {
  AioRequest* const one[] = {request};
  push_to_sink(absl::MakeConstSpan(one), where, has_room);
}

void BlockDevice::Core::push_to_sink(absl::Span<AioRequest* const> requests,
                                     Where where, bool has_room) {
  // Whoever reaps them may be done with them at once.
  absl::InlinedVector<Generation, kUsualChain> generations;
  for (AioRequest* request : requests) {
    generations.push_back(request->generation);
    request->state.store(State::kDone, std::memory_order_release);
  }
  sink_->push(requests, where == Where::kWorker ? work_.get() : nullptr,
              sink_notification_);
  if (has_room) start_waiting(/*may_run_in_place=*/false);
  for (const Generation generation : generations) in_flight_.leave(generation);
}

}  // namespace spindle

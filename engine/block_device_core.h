// BlockDevice::Core: the inside of a device.
//
// The path of an asynchronous request: submit() checks it, its throttle (if the
// driver has one) and Admission let it start, it runs in place or the
// executor's queue takes it, run_request() does it on a worker, finish() counts
// it, deliver() completes it.  Exactly one of those steps owns a request at any
// time; AioRequest::State says which.
//
// Owns everything that the device is made of, except the executor and a
// completion queue that the embedder gave.  Outlives every request that has not
// been completed: the destructor waits for them.
//
// Thread safety: every method, from any thread.
#ifndef SPINDLE_ENGINE_BLOCK_DEVICE_CORE_H_
#define SPINDLE_ENGINE_BLOCK_DEVICE_CORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/admission.h"
#include "engine/aio.h"
#include "engine/block_device.h"
#include "engine/completion_sink.h"
#include "engine/in_flight_tracker.h"
#include "engine/range_waiters.h"
#include "engine/request_executor.h"
#include "engine/throttle_group.h"
#include "threadpool/fork_guard.h"

namespace spindle {

class BlockDevice::Core final : public RequestOwner {
 public:
  // `own_queue` is null if the options name a queue.
  Core(std::shared_ptr<BlockDriver> driver, Executor* executor,
       BlockDeviceOptions options, std::unique_ptr<CompletionQueue> own_queue);
  ~Core();

  // ---- Requests (block_device_core.cc) -------------------------------------

  // Runs a request on the calling thread.
  absl::Status run_here(const RequestSpec& spec, const IoVector& qiov,
                        BlockStatus* block_status = nullptr);
  // Takes over the engine's reference to `request`; the handle gets the other.
  AioHandle submit(AioRequest* request);

  void plug() { admission_.plug(); }
  void unplug();
  void set_max_in_flight(size_t limit);

  // RequestOwner.
  void run_request(AioRequest* request) override;
  void abandon_request(AioRequest* request) override;
  void start_throttled(AioRequest* request) override;
  void cancel_request(AioRequest* request, bool was_queued) override;

  // ---- Life cycle (block_device_life.cc) -----------------------------------

  // Offsets are signed in most system calls.
  static constexpr uint64_t kMaxLengthBytes = uint64_t{1} << 62;

  // What the destructor of the device does.
  void shut_down();
  absl::Status drain();
  absl::Status close();
  absl::Status reopen(ReopenOptions options,
                      std::optional<CacheMode> cache_mode);
  absl::Status amend(const AmendOptions& options);
  absl::Status apply_snapshot(absl::string_view snapshot);
  absl::Status set_length(uint64_t length_bytes, Preallocation preallocation);
  void add_length_listener(std::function<void(uint64_t)> listener)
      ABSL_LOCKS_EXCLUDED(listeners_mutex_);

  BlockDriver& driver() const { return *driver_; }
  CompletionQueue& completion_queue() const { return *queue_; }
  RequestExecutor& requests() { return requests_; }
  ShardedDeviceCounters& counters() { return counters_; }

 private:
  // Where a completion may run.
  enum class Where {
    kWorker,  // here: a worker of the executor, inside run()
    kCaller,  // on another thread: this is a call of the embedder
    kReap,    // in reap()
  };

  // ---- Requests ----
  // OK if the device takes requests at all.
  absl::Status check_open() const;
  // REQUIRES: the device is not being changed.
  absl::Status check(const RequestSpec& spec) const;
  // In a process that was forked off after the device was made.  What other
  // threads were doing then will never end here, and what the driver remembers
  // is the parent's to write back.
  absl::Status refuse_in_fork() const;
  // Counts a request that runs on its caller's thread, and waits while the
  // device is being changed.
  Generation enter_here();
  // False: the request waits for its limits, and is no more the caller's.
  bool pass_throttle(AioRequest* request);
  // The same on the calling thread, which waits.
  void wait_for_throttle(const RequestSpec& spec);
  // Gives a checked request that cannot run in place to the executor.
  void admit(AioRequest* request, bool may_run_in_place);
  // Each of these begins or ends the life of a request that the caller owns.
  void start(AioRequest* request);
  // False if the pool shall have it, whether it could run in place or not.
  bool may_run_in_place(AioRequest* request);
  bool run_in_place(AioRequest* request);
  // True if the request can begin; else it has been completed.
  bool begin(AioRequest* request, bool may_run_in_place);
  // True if others may start now; does not start them.
  bool refuse(AioRequest* request);
  bool refuse_chain(AioRequest* first);
  void complete(AioRequest* request, absl::Status status, Where where);
  // The two halves of complete().  The first returns true if others may start
  // now that waited for this one.
  bool finish(AioRequest* request, absl::Status status);
  // `has_room`: finish() said so, and nobody has acted on it.  The others start
  // before a callback runs, which may take its time, but after a plain
  // completion was queued, so that a limit of one keeps completions in order.
  void deliver(AioRequest* request, Where where, bool has_room);
  void push_to_sink(AioRequest* request, Where where, bool has_room);
  void push_to_sink(absl::Span<AioRequest* const> requests, Where where,
                    bool has_room);

  WorkQueue& queue_of(const AioRequest& request) const {
    return requests_.takes_turns(request.spec) ? *turns_ : *work_;
  }
  // Requests that one transfer can do are handed to the executor as one item, a
  // chain.  True if `next` can go behind `last` in that of `first`.
  bool joins(const AioRequest& first, const AioRequest& last,
             const AioRequest& next) const;
  // Gives a chain of which the first was taken out to the executor again.
  void resubmit_chain(AioRequest* first);
  // Runs a chain: as one transfer, or where that does not work or one of them
  // has been withdrawn, one after the other.
  void run_chain(AioRequest* first);
  // True if the caller is to run it; else it has been, or will be, completed.
  bool claim_to_run(AioRequest* request);
  void run_claimed(AioRequest* request);
  // True if all were done.
  bool run_as_one(absl::Span<AioRequest* const> requests);
  // Runs `request`; false if it waits for a range, and is no more the caller's.
  bool run_or_park(AioRequest* request, absl::Status* status);
  // A request of that kind is over: others may have waited for its range.
  void release_ranges(RequestKind kind);
  // Starts what waited and need not wait any more.
  void start_waiting(bool may_run_in_place);
  // True if some were refused, and others may start in their place.
  bool submit_batch(absl::Span<AioRequest* const> requests);
  bool submit_to(WorkQueue& queue, absl::Span<WorkItem* const> items);
  // The executor is done with `request` without having run it.  False: its
  // canceller completes it, and the caller must not touch it any more.
  static bool claim_from_queue(AioRequest* request, bool* cancelled);

  // ---- Life cycle ----
  absl::Status refuse_inside_callback(absl::string_view what) const;
  // Waits until what was submitted before the call is complete.
  void wait_for_requests(InFlightTracker::Drain* drain);
  absl::Status close_driver();
  bool run_own_callbacks();
  // Runs `change` while nothing is in flight, and nothing starts.
  absl::Status change_quiescent(absl::FunctionRef<absl::Status()> change);
  void tell_listeners(uint64_t length_bytes)
      ABSL_LOCKS_EXCLUDED(listeners_mutex_);

  const ForkGuard fork_guard_;
  const std::shared_ptr<BlockDriver> driver_;
  Executor* const executor_;
  const BlockDeviceOptions options_;
  // Never used again, not even after the device: what a handle remembers.
  const uint64_t id_;
  const bool has_threads_;
  const std::unique_ptr<CompletionQueue> own_queue_;
  CompletionQueue* const queue_;
  const std::shared_ptr<CompletionSink> sink_;
  const std::shared_ptr<BatchNotification> sink_notification_;
  const std::shared_ptr<WorkQueue> work_;
  // For requests that take turns below.
  const std::shared_ptr<WorkQueue> turns_;
  // Callbacks of requests that did not run: a queue of their own, so that they
  // need not wait behind requests that hang.
  const std::shared_ptr<WorkQueue> callbacks_;

  RequestExecutor requests_;
  ShardedDeviceCounters counters_;
  InFlightTracker in_flight_;
  Admission admission_;
  RangeWaiters range_waiters_;
  // Null: nothing is throttled.
  std::unique_ptr<ThrottleGroup::Member> throttle_;
  std::atomic<bool> closed_{false};
  // How many requests were tried in place since the last unplug.
  std::atomic<size_t> in_place_in_plug_{0};

  // A leaf: nothing is acquired while it is held.
  absl::Mutex life_mutex_;
  std::optional<absl::Status> close_result_ ABSL_GUARDED_BY(life_mutex_);

  // A leaf: listeners are called with it released.
  absl::Mutex listeners_mutex_;
  std::vector<std::function<void(uint64_t)>> listeners_
      ABSL_GUARDED_BY(listeners_mutex_);
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_BLOCK_DEVICE_CORE_H_

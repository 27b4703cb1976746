// AioRequest: one asynchronous request, from submission to completion.
//
// A request is shared by reference count between its handles and the engine,
// which holds one reference until the completion has been delivered.  Finished
// requests go back to a process-wide cache that is never torn down, so handles
// may outlive devices, and submitting allocates nothing in steady state.
//
// Thread safety: the reference count and the state are atomic.  Everything else
// belongs to whoever the state says (see State); it changes hands with it.
#ifndef SPINDLE_ENGINE_AIO_H_
#define SPINDLE_ENGINE_AIO_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/aio_handle.h"
#include "engine/block_driver.h"
#include "engine/in_flight_tracker.h"
#include "engine/io_vector.h"
#include "engine/request.h"
#include "engine/throttle_group.h"
#include "threadpool/executor.h"

namespace spindle {

class AioRequest;
class RequestList;

// Runs once per request.  OK, the driver's error, or kCancelled.
using AioCallback = absl::AnyInvocable<void(const absl::Status& status) &&>;
using AioStatusCallback =
    absl::AnyInvocable<void(const absl::StatusOr<BlockStatus>& status) &&>;

// The device, as its requests see it.  It outlives every request that has not
// been completed.
class RequestOwner {
 public:
  virtual void run_request(AioRequest* request) = 0;
  virtual void abandon_request(AioRequest* request) = 0;
  // The caller has moved the request from kWaiting to kRunning: its limits let
  // it start.
  virtual void start_throttled(AioRequest* request) = 0;
  // The caller has moved the request from kWaiting or kQueued to kCancelling.
  virtual void cancel_request(AioRequest* request, bool was_queued) = 0;

 protected:
  ~RequestOwner() = default;
};

class AioRequest final : public WorkItem, public ThrottleGroup::Waiter {
 public:
  // Who may touch a request, and what cancel() may do with it.
  //
  // kQueued is where a worker and a canceller may meet.  The canceller claims
  // the request (kCancelling), asks the executor to withdraw it, and if that
  // came too late says so (kCancelled): the worker that arrives completes it.
  // If the worker arrives in between (kArrived), the canceller completes it.
  enum class State : uint32_t {
    kSubmitting,  // the submitting thread's
    kWaiting,     // in a list of Admission, RangeWaiters or a ThrottleGroup
    kQueued,      // in, or on its way into, the executor's queue
    kRunning,     // a worker's, or that of whoever starts or refuses it; also
                  // while one with `changed_something` waits for a worker
    kCancelling,  // the canceller's
    kArrived,     // the canceller's; the executor is done with it
    kCancelled,   // the worker's that will arrive
    kWithdrawn,   // completes with kCancelled
    kDone,        // its completion is queued, or its callback was entered
  };

  // A request with two references: the engine's, and the first handle's.
  static AioRequest* make();
  void add_reference() { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop_reference();

  // WorkItem.
  void run() override { owner->run_request(this); }
  void abandon() override { owner->abandon_request(this); }

  // ThrottleGroup::Waiter.
  bool claim_throttled() override;
  void start_throttled() override { owner->start_throttled(this); }

  bool has_callback() const {
    return callback != nullptr || status_callback != nullptr;
  }
  // Runs the callback, with the device marked as inside one.
  // REQUIRES: has_callback(), state is kDone.
  void run_callback(bool counted);

  std::atomic<State> state{State::kSubmitting};
  RequestOwner* owner = nullptr;  // valid until the state is kDone
  uint64_t device_id = 0;
  RequestSpec spec;
  IoVector qiov;
  // How many bytes from the front have been done in place.
  uint64_t done_bytes = 0;
  // A part of the write may be on the disk: it is not to be withdrawn.
  bool changed_something = false;
  uint64_t user_data = 0;
  AioCallback callback;
  AioStatusCallback status_callback;
  absl::Status status;
  BlockStatus block_status;
  int64_t submitted_nanoseconds = 0;
  Generation generation = 0;
  // No further attempt to run in place is made; all of it ran there.
  bool tried_in_place = false;
  bool ran_in_place = false;
  // Counts against the limit on requests in flight.
  bool has_slot = false;
  // In state kWaiting: RangeWaiters has it, or a ThrottleGroup, not Admission.
  bool waits_for_range = false;
  bool waits_for_throttle = false;
  // The request that runs after this one, as a part of the same work item; in
  // the same state as the first, but in no queue.  Whoever has the item has it,
  // too; see BlockDevice::Core::run_chain().
  AioRequest* follower = nullptr;
  // How often it gave up because another request was in its range.
  int attempts = 0;
  // It has its result, and is in the executor's queue to run its callback.
  bool has_result = false;

 private:
  friend class RequestList;
  friend class RequestCache;
  friend class CompletionSink;

  AioRequest() = default;
  ~AioRequest() = default;
  void reset();

  std::atomic<uint32_t> references_{0};
  size_t cache_shard_ = 0;
  // The list that it is in: of Admission, of a CompletionSink, or of the cache.
  RequestList* list_ = nullptr;
  AioRequest* previous_ = nullptr;
  AioRequest* next_ = nullptr;
};

// A list of requests, linked through them: each is in one list at most.  Does
// not own them.
//
// Thread safety: guarded by its user.
class RequestList {
 public:
  RequestList() = default;
  RequestList(const RequestList&) = delete;
  RequestList& operator=(const RequestList&) = delete;

  bool empty() const { return first_ == nullptr; }
  AioRequest* front() const { return first_; }
  bool contains(const AioRequest* request) const {
    return request->list_ == this;
  }
  void push_back(AioRequest* request);
  void push_front(AioRequest* request);
  // Null if empty.
  AioRequest* pop_front();
  // REQUIRES: contains(request).
  void remove(AioRequest* request);

 private:
  AioRequest* first_ = nullptr;
  AioRequest* last_ = nullptr;
};

// Marks the calling thread as inside a callback of one device; they nest.
class CallbackScope {
 public:
  // `counted`: the request that the callback belongs to is still in flight, so
  // that a drain waits for the callback.
  CallbackScope(uint64_t device_id, bool counted);
  ~CallbackScope();
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

  // True if the calling thread is inside a callback of that device.
  static bool inside(uint64_t device_id);
  // ... of a request that is still in flight.
  static bool inside_counted(uint64_t device_id);

 private:
  const uint64_t device_id_;
  const bool counted_;
  const CallbackScope* const outer_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_AIO_H_

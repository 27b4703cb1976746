// OwnedRequest: a request of the generic layer that a test holds, outside any
// device.
//
// Thread safety: that of AioRequest.
#ifndef SPINDLE_TESTS_ENGINE_OWNED_REQUEST_H_
#define SPINDLE_TESTS_ENGINE_OWNED_REQUEST_H_

#include "engine/aio.h"
#include "engine/in_flight_tracker.h"

namespace spindle {

class OwnedRequest {
 public:
  explicit OwnedRequest(Generation generation = 0)
      : request_(AioRequest::make()) {
    request_->generation = generation;
  }
  ~OwnedRequest() {
    // The submitter's reference and the engine's.
    request_->drop_reference();
    request_->drop_reference();
  }
  OwnedRequest(const OwnedRequest&) = delete;
  OwnedRequest& operator=(const OwnedRequest&) = delete;

  AioRequest* get() const { return request_; }
  AioRequest* operator->() const { return request_; }
  AioRequest::State state() const { return request_->state.load(); }
  // What AioHandle::cancel() does first.
  bool claim() {
    AioRequest::State waiting = AioRequest::State::kWaiting;
    return request_->state.compare_exchange_strong(
        waiting, AioRequest::State::kCancelling);
  }

 private:
  AioRequest* const request_;
};

}  // namespace spindle

#endif  // SPINDLE_TESTS_ENGINE_OWNED_REQUEST_H_

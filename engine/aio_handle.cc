#include "engine/aio_handle.h"

#include <utility>

#include "engine/aio.h"

namespace spindle {

AioHandle::AioHandle(const AioHandle& other) : request_(other.request_) {
  if (request_ != nullptr) request_->add_reference();
}

AioHandle& AioHandle::operator=(const AioHandle& other) {
  AioHandle copy(other);
  std::swap(request_, copy.request_);
  return *this;
}

AioHandle& AioHandle::operator=(AioHandle&& other) noexcept {
  AioHandle taken(std::move(other));
  std::swap(request_, taken.request_);
  return *this;
}

AioHandle::~AioHandle() {
  if (request_ != nullptr) request_->drop_reference();
}

AioHandle::CancelResult AioHandle::cancel() {
  using State = AioRequest::State;
  if (request_ == nullptr) return CancelResult::kDone;
  State state = request_->state.load(std::memory_order_acquire);
  // Whoever claims the request keeps it from completing, and with that its
  // owner alive; before that, the owner must not be touched.
  while (state == State::kWaiting || state == State::kQueued) {
    if (request_->state.compare_exchange_weak(state, State::kCancelling,
                                              std::memory_order_acq_rel,
                                              std::memory_order_acquire)) {
      request_->owner->cancel_request(request_, state == State::kQueued);
      return CancelResult::kWithdrawn;
    }
  }
  switch (state) {
    case State::kDone:
      return CancelResult::kDone;
    case State::kSubmitting:
    case State::kRunning:
      return CancelResult::kRunning;
    default:
      return CancelResult::kWithdrawn;  // by an earlier cancel()
  }
}

bool AioHandle::done() const {
  return request_ == nullptr ||
         request_->state.load(std::memory_order_acquire) ==
             AioRequest::State::kDone;
}

}  // namespace spindle

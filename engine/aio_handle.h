// AioHandle: a submitted request, as its submitter sees it.
//
// Thread safety: a handle is a value (copying shares the request); cancel() and
// done() may be called from any thread, at any time, also after completion and
// after the device is gone.
#ifndef SPINDLE_ENGINE_AIO_HANDLE_H_
#define SPINDLE_ENGINE_AIO_HANDLE_H_

namespace spindle {

class AioRequest;

class AioHandle {
 public:
  enum class CancelResult {
    kWithdrawn,  // it had not started; it completes with kCancelled
    kRunning,    // it had started and completes as usual
    kDone,       // it had completed already
  };

  AioHandle() = default;
  // Takes over one reference.
  explicit AioHandle(AioRequest* request) : request_(request) {}
  AioHandle(const AioHandle& other);
  AioHandle& operator=(const AioHandle& other);
  AioHandle(AioHandle&& other) noexcept : request_(other.request_) {
    other.request_ = nullptr;
  }
  AioHandle& operator=(AioHandle&& other) noexcept;
  ~AioHandle();

  // Withdraws the request if it waits.  Never blocks, and never runs the
  // completion inside the call.
  CancelResult cancel();
  // True once the request has completed: its completion has been queued, or its
  // callback entered.
  bool done() const;

 private:
  AioRequest* request_ = nullptr;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_AIO_HANDLE_H_

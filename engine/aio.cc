#include "engine/aio.h"

#include <array>
#include <new>
#include <utility>

#include "absl/base/macros.h"
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/thread_shard.h"

namespace spindle {

// Finished requests, kept for the next submission.  A request goes back to the
// shard it came from: who submits and who reaps are often different threads,
// and the submitter would otherwise find its own shard empty.  A thread that
// does both keeps a few for itself, and needs no lock.
class RequestCache {
 public:
  // Never destroyed: handles may be dropped at any time.
  static RequestCache& instance() {
    static RequestCache* const cache = new RequestCache;
    return *cache;
  }

  AioRequest* take() {
    if (AioRequest* request = local.take(); request != nullptr) return request;
    const size_t index = thread_shard() % kShards;
    Shard& shard = shards_[index];
    {
      absl::MutexLock lock(&shard.mutex);
      if (AioRequest* request = shard.free.pop_front(); request != nullptr) {
        --shard.count;
        return request;
      }
    }
    AioRequest* const request = new AioRequest;
    request->cache_shard_ = index;
    return request;
  }

  void give_back(AioRequest* request) {
    if (request->cache_shard_ == thread_shard() % kShards &&
        local.give_back(request)) {
      return;
    }
    give_back_to_shard(request);
  }

 private:
  static constexpr size_t kShards = 16;
  // More than any queue depth that is in use; the rest is freed.
  static constexpr size_t kKeptPerShard = 4096;
  static constexpr size_t kKeptPerThread = 64;

  struct alignas(64) Shard {
    // A leaf: nothing is acquired while it is held.
    absl::Mutex mutex;
    RequestList free ABSL_GUARDED_BY(mutex);
    size_t count ABSL_GUARDED_BY(mutex) = 0;
  };

  // What one thread keeps for itself, until it ends.
  class Local {
   public:
    constexpr Local() = default;
    ~Local() {
      ended_ = true;
      while (AioRequest* request = pop())
        instance().give_back_to_shard(request);
    }
    AioRequest* take() { return count_ == 0 ? nullptr : pop(); }
    bool give_back(AioRequest* request) {
      // Other thread-local objects may drop handles after this one is gone.
      if (count_ >= kKeptPerThread || ended_) return false;
      request->next_ = first_;
      first_ = request;
      ++count_;
      return true;
    }

   private:
    AioRequest* pop() {
      AioRequest* const request = first_;
      if (request == nullptr) return nullptr;
      first_ = request->next_;
      --count_;
      return request;
    }
    AioRequest* first_ = nullptr;
    size_t count_ = 0;
    bool ended_ = false;
  };

  void give_back_to_shard(AioRequest* request) {
    Shard& shard = shards_[request->cache_shard_];
    {
      absl::MutexLock lock(&shard.mutex);
      if (shard.count < kKeptPerShard) {
        ++shard.count;
        shard.free.push_front(request);
        return;
      }
    }
    delete request;
  }

  static thread_local constinit Local local;

  std::array<Shard, kShards> shards_;
};

thread_local constinit RequestCache::Local RequestCache::local;

AioRequest* AioRequest::make() {
  AioRequest* const request = RequestCache::instance().take();
  request->references_.store(2, std::memory_order_relaxed);
  request->state.store(State::kSubmitting, std::memory_order_relaxed);
  return request;
}

void AioRequest::drop_reference() {
  // The last holder needs no read-modify-write: nobody else can add one.
  if (references_.load(std::memory_order_acquire) != 1 &&
      references_.fetch_sub(1, std::memory_order_acq_rel) != 1) {
    return;
  }
  reset();
  RequestCache::instance().give_back(this);
}

void AioRequest::reset() {
  // Short vectors have nothing to release, and long ones share a block.
  if (qiov.segment_count() > IoVector::kInlineSegments) qiov = IoVector();
  if (callback) callback = nullptr;
  if (status_callback) status_callback = nullptr;
  if (!status.ok()) status = absl::OkStatus();
  done_bytes = 0;
  changed_something = false;
  has_slot = false;
  waits_for_range = false;
  waits_for_throttle = false;
  tried_in_place = false;
  ran_in_place = false;
  follower = nullptr;
  attempts = 0;
  has_result = false;
}

bool AioRequest::claim_throttled() {
  State waiting = State::kWaiting;
  return state.compare_exchange_strong(waiting, State::kRunning,
                                       std::memory_order_acq_rel);
}

void AioRequest::run_callback(bool counted) {
  // What the callback owns goes when it has run, whatever handles remain.
  const CallbackScope scope(device_id, counted);
  if (callback) {
    AioCallback run_once = std::move(callback);
    callback = nullptr;
    std::move(run_once)(status);
    return;
  }
  AioStatusCallback run_once = std::move(status_callback);
  status_callback = nullptr;
  if (status.ok()) {
    std::move(run_once)(block_status);
  } else {
    std::move(run_once)(status);
  }
}

void RequestList::push_back(AioRequest* request) {
  ABSL_ASSERT(request->list_ == nullptr);
  request->list_ = this;
  request->previous_ = last_;
  request->next_ = nullptr;
  (last_ == nullptr ? first_ : last_->next_) = request;
  last_ = request;
}

void RequestList::push_front(AioRequest* request) {
  ABSL_ASSERT(request->list_ == nullptr);
  request->list_ = this;
  request->previous_ = nullptr;
  request->next_ = first_;
  (first_ == nullptr ? last_ : first_->previous_) = request;
  first_ = request;
}

AioRequest* RequestList::pop_front() {
  AioRequest* const request = first_;
  if (request != nullptr) remove(request);
  return request;
}

void RequestList::remove(AioRequest* request) {
  ABSL_ASSERT(contains(request));
  (request->previous_ == nullptr ? first_ : request->previous_->next_) =
      request->next_;
  (request->next_ == nullptr ? last_ : request->next_->previous_) =
      request->previous_;
  request->list_ = nullptr;
}

namespace {

thread_local constinit const CallbackScope* innermost_callback = nullptr;

}  // namespace

CallbackScope::CallbackScope(uint64_t device_id, bool counted)
    : device_id_(device_id), counted_(counted), outer_(innermost_callback) {
  innermost_callback = this;
}

CallbackScope::~CallbackScope() { innermost_callback = outer_; }

bool CallbackScope::inside(uint64_t device_id) {
  for (const CallbackScope* scope = innermost_callback; scope != nullptr;
       scope = scope->outer_) {
    if (scope->device_id_ == device_id) return true;
  }
  return false;
}

bool CallbackScope::inside_counted(uint64_t device_id) {
  for (const CallbackScope* scope = innermost_callback; scope != nullptr;
       scope = scope->outer_) {
    if (scope->device_id_ == device_id && scope->counted_) return true;
  }
  return false;
}

}  // namespace spindle

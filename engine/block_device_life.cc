// BlockDevice::Core: drain, close, and changes of an open device.
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/block_device_core.h"
#include "engine/errors.h"

namespace spindle {

absl::Status BlockDevice::Core::refuse_inside_callback(
    absl::string_view what) const {
  if (!CallbackScope::inside(id_)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(what, " inside a callback of the device"));
}

void BlockDevice::Core::wait_for_requests(InFlightTracker::Drain* drain) {
  if (throttle_ != nullptr) throttle_->begin_drain();
  admission_.begin_drain();
  start_waiting(/*may_run_in_place=*/false);
  drain->wait([this] { return executor_->run_one(); },
              /*has_help=*/!has_threads_);
  admission_.end_drain();
  if (throttle_ != nullptr) throttle_->end_drain();
}

absl::Status BlockDevice::Core::drain() {
  if (absl::Status inside = refuse_inside_callback("drain"); !inside.ok())
    return inside;
  if (fork_guard_.crossed_fork()) {
    // Only what was submitted here can end here, and is refused.
    admission_.begin_drain();
    start_waiting(/*may_run_in_place=*/false);
    admission_.end_drain();
    return absl::OkStatus();
  }
  InFlightTracker::Drain drain(&in_flight_);
  wait_for_requests(&drain);
  return absl::OkStatus();
}

absl::Status BlockDevice::Core::close() {
  if (absl::Status inside = refuse_inside_callback("close"); !inside.ok())
    return inside;
  if (absl::Status forked = refuse_in_fork(); !forked.ok()) return forked;
  closed_.store(true, std::memory_order_seq_cst);
  InFlightTracker::Drain drain(&in_flight_);
  wait_for_requests(&drain);
  {
    absl::MutexLock lock(&life_mutex_);
    if (close_result_.has_value()) return *close_result_;
  }
  // Only one thread gets here: the others wait for the drain.
  const absl::Status result = close_driver();
  absl::MutexLock lock(&life_mutex_);
  close_result_ = result;
  return result;
}

absl::Status BlockDevice::Core::close_driver() {
  // Also with cache=unsafe: it is the last chance.
  const absl::Status flushed =
      driver_->read_only() ? absl::OkStatus() : driver_->flush();
  const absl::Status closed = driver_->close();
  return flushed.ok() ? closed : flushed;
}

absl::Status BlockDevice::Core::change_quiescent(
    absl::FunctionRef<absl::Status()> change) {
  if (absl::Status forked = refuse_in_fork(); !forked.ok()) return forked;
  const uint64_t length_before = requests_.length_bytes();
  absl::Status status;
  {
    InFlightTracker::Drain drain(&in_flight_);
    if (closed_.load(std::memory_order_seq_cst)) {
      return absl::FailedPreconditionError("the device is closed");
    }
    admission_.hold(drain.later_generation());
    wait_for_requests(&drain);
    status = change();
    requests_.refresh();
    admission_.release();
    start_waiting(/*may_run_in_place=*/false);
  }
  const uint64_t length = requests_.length_bytes();
  if (length != length_before) tell_listeners(length);
  return status;
}

absl::Status BlockDevice::Core::reopen(ReopenOptions options,
                                       std::optional<CacheMode> cache_mode) {
  if (absl::Status inside = refuse_inside_callback("reopen"); !inside.ok())
    return inside;
  return change_quiescent([&] {
    if (!requests_.capabilities().has(Capability::kReopen)) {
      return absl::UnimplementedError(absl::StrCat(
          "the ", driver_->format_name(), " driver cannot be reopened"));
    }
    if (cache_mode.has_value()) {
      OpenOptions before, after;
      apply_cache_mode(requests_.cache_mode(), &before);
      apply_cache_mode(*cache_mode, &after);
      if (before.direct != after.direct) options.direct = after.direct;
      if (before.no_flush != after.no_flush) options.no_flush = after.no_flush;
    }
    absl::Status status = driver_->reopen(options);
    if (status.ok() && cache_mode.has_value())
      requests_.set_cache_mode(*cache_mode);
    return status;
  });
}

absl::Status BlockDevice::Core::amend(const AmendOptions& options) {
  if (absl::Status inside = refuse_inside_callback("amend"); !inside.ok())
    return inside;
  return change_quiescent([&]() -> absl::Status {
    if (requests_.read_only())
      return absl::PermissionDeniedError("the device is read-only");
    if (!requests_.capabilities().has(Capability::kAmend)) {
      return absl::UnimplementedError(absl::StrCat(
          "the ", driver_->format_name(), " driver cannot amend an image"));
    }
    return driver_->amend(options);
  });
}

absl::Status BlockDevice::Core::apply_snapshot(absl::string_view snapshot) {
  if (absl::Status inside = refuse_inside_callback("apply_snapshot");
      !inside.ok())
    return inside;
  return change_quiescent([&]() -> absl::Status {
    if (requests_.read_only())
      return absl::PermissionDeniedError("the device is read-only");
    if (!requests_.capabilities().has(Capability::kSnapshots)) {
      return absl::UnimplementedError(absl::StrCat(
          "the ", driver_->format_name(), " driver has no snapshots"));
    }
    return driver_->apply_snapshot(snapshot);
  });
}

absl::Status BlockDevice::Core::set_length(uint64_t length_bytes,
                                           Preallocation preallocation) {
  if (absl::Status inside = refuse_inside_callback("set_length"); !inside.ok())
    return inside;
  return change_quiescent([&]() -> absl::Status {
    if (requests_.read_only())
      return absl::PermissionDeniedError("the device is read-only");
    if (!requests_.capabilities().has(Capability::kSetLength)) {
      return with_qemu_words(
          absl::UnimplementedError(absl::StrCat("the ", driver_->format_name(),
                                                " driver cannot change its "
                                                "length")),
          "Image format driver does not support resize");
    }
    if (length_bytes > kMaxLengthBytes) {
      return absl::OutOfRangeError(absl::StrCat(
          "length ", length_bytes, " is more than ", kMaxLengthBytes));
    }
    return driver_->resize(length_bytes, preallocation);
  });
}

void BlockDevice::Core::add_length_listener(
    std::function<void(uint64_t)> listener) {
  absl::MutexLock lock(&listeners_mutex_);
  listeners_.push_back(std::move(listener));
}

void BlockDevice::Core::tell_listeners(uint64_t length_bytes) {
  std::vector<std::function<void(uint64_t)>> listeners;
  {
    absl::MutexLock lock(&listeners_mutex_);
    listeners = listeners_;
  }
  for (const auto& listener : listeners) listener(length_bytes);
}

void BlockDevice::Core::shut_down() {
  ABSL_RAW_CHECK(!CallbackScope::inside(id_),
                 "a device destroyed inside its own callback");
  if (fork_guard_.crossed_fork()) return;
  const absl::Status status = close();
  if (!status.ok() && options_.log) {
    options_.log(LogSeverity::kError, absl::StrCat("closing ", options_.name,
                                                   ": ", status.ToString()));
  }
  // What was refused since may still have to complete, and each callback may
  // submit once more.
  do {
    InFlightTracker::Drain drain(&in_flight_);
    wait_for_requests(&drain);
  } while (own_queue_ != nullptr && run_own_callbacks());
}

bool BlockDevice::Core::run_own_callbacks() {
  size_t callbacks = 0;
  own_queue_->reap({}, &callbacks);
  return callbacks > 0;
}

}  // namespace spindle

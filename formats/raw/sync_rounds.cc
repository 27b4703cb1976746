#include "formats/raw/sync_rounds.h"

#include <errno.h>
#include <unistd.h>

namespace spindle {
namespace {

int fdatasync_errno(int fd) {
  while (::fdatasync(fd) != 0) {
    if (errno != EINTR) return errno;
  }
  return 0;
}

}  // namespace

int SyncRounds::sync(int fd) {
  absl::MutexLock lock(&mutex_);
  // The round that runs may have begun before our writes were complete.
  const uint64_t needed = rounds_started_ + 1;
  while (error_number_ == 0 && rounds_ended_ < needed) {
    if (rounds_started_ != rounds_ended_) {
      round_ended_.Wait(&mutex_);
      continue;
    }
    ++rounds_started_;
    mutex_.Unlock();
    const int error_number = fdatasync_errno(fd);
    mutex_.Lock();
    ++rounds_ended_;
    if (error_number_ == 0) error_number_ = error_number;
    round_ended_.SignalAll();
  }
  return error_number_;
}

void SyncRounds::forget_failure() {
  absl::MutexLock lock(&mutex_);
  error_number_ = 0;
}

}  // namespace spindle

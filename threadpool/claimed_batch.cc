#include "threadpool/claimed_batch.h"

#include <algorithm>
#include <utility>

namespace spindle {

void ClaimedBatch::claim(WorkList& from, size_t count) {
  absl::MutexLock lock(&mu_);
  for (; count > 0; --count) items_.push_back(from.pop_front());
}

WorkItem* ClaimedBatch::take() {
  absl::MutexLock lock(&mu_);
  WorkItem* item = items_.pop_front();
  if (item != nullptr) ++started_;
  return item;
}

bool ClaimedBatch::withdraw(WorkItem* item) {
  absl::MutexLock lock(&mu_);
  if (!holds(item)) return false;
  items_.remove(item);
  return true;
}

size_t ClaimedBatch::give_back(WorkList& to) {
  absl::MutexLock lock(&mu_);
  const size_t count = items_.size();
  while (WorkItem* item = items_.pop_back()) to.push_front(item);
  return count;
}

void ClaimedBatch::add(const std::shared_ptr<BatchNotification>& notification) {
  absl::MutexLock lock(&mu_);
  if (std::find(notifications_.begin(), notifications_.end(), notification) ==
      notifications_.end()) {
    notifications_.push_back(notification);
  }
}

ClaimedBatch::Notifications ClaimedBatch::take_notifications() {
  absl::MutexLock lock(&mu_);
  return std::exchange(notifications_, {});
}

ClaimedBatch::Look ClaimedBatch::look() const {
  absl::MutexLock lock(&mu_);
  return {.started = started_,
          .waiting = !items_.empty() || !notifications_.empty()};
}

uint64_t ClaimedBatch::started_in_batch() const {
  absl::MutexLock lock(&mu_);
  return started_ - started_before_;
}

uint64_t ClaimedBatch::end() {
  absl::MutexLock lock(&mu_);
  return started_ - std::exchange(started_before_, started_);
}

}  // namespace spindle

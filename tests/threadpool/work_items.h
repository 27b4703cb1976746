// Work items and notifications for the tests of threadpool/.
//
// Thread safety: each type may be used from any thread.
#ifndef SPINDLE_TESTS_THREADPOOL_WORK_ITEMS_H_
#define SPINDLE_TESTS_THREADPOOL_WORK_ITEMS_H_

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <utility>

#include "absl/synchronization/notification.h"
#include "threadpool/executor.h"

namespace spindle {

// Calls a function.
class FunctionItem final : public WorkItem {
 public:
  explicit FunctionItem(
      std::function<void()> run, std::function<void()> abandon = [] {})
      : run_(std::move(run)), abandon_(std::move(abandon)) {}
  void run() override { run_(); }
  void abandon() override { abandon_(); }

 private:
  const std::function<void()> run_;
  const std::function<void()> abandon_;
};

// Counts what happened to it.
class CountingItem final : public WorkItem {
 public:
  void run() override { ran.fetch_add(1); }
  void abandon() override { abandoned.fetch_add(1); }

  std::atomic<int> ran = 0;
  std::atomic<int> abandoned = 0;
};

// Occupies a worker until it is released.
class HungItem final : public WorkItem {
 public:
  ~HungItem() = default;
  void run() override {
    entered.Notify();
    release.WaitForNotification();
  }
  void abandon() override {}

  absl::Notification entered;
  absl::Notification release;
};

class CountingNotification final : public BatchNotification {
 public:
  void batch_ended() override {
    calls.fetch_add(1);
    if (!first.HasBeenNotified()) first.Notify();
  }

  std::atomic<int> calls = 0;
  absl::Notification first;
};

// The seed of a random test: SPINDLE_SEED, or `fallback`; printed either way.
inline uint64_t test_seed(uint64_t fallback) {
  const char* const text = std::getenv("SPINDLE_SEED");
  const uint64_t seed =
      text == nullptr ? fallback : std::strtoull(text, nullptr, 0);
  std::cout << "SPINDLE_SEED=" << seed << std::endl;
  return seed;
}

}  // namespace spindle

#endif  // SPINDLE_TESTS_THREADPOOL_WORK_ITEMS_H_

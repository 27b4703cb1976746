// Workload: random requests of every kind against one BlockDevice, judged by a
// ModelDisk.  Where the device's length changes meanwhile, a request succeeds
// or gets kOutOfRange by a length that it may have had when it was submitted.
//
// With threads, several workers submit at once.  Without (Executor::width() is
// 0), one thread interleaves submissions, run_one() and completions at random.
//
// Thread safety: run() is called by one thread and starts others.
#ifndef SPINDLE_TESTS_STRESS_WORKLOAD_H_
#define SPINDLE_TESTS_STRESS_WORKLOAD_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/block_device.h"
#include "tests/stress/counts.h"
#include "tests/support/model_disk.h"
#include "threadpool/executor.h"

namespace spindle::testing {

class Workload;

struct WorkloadOptions {
  size_t threads = 8;
  uint64_t seed = 0;
  // The longest data request, in sectors; discards and write-zeroes may be
  // four times as long.
  uint64_t most_sectors = 64;
  // Requests of one worker in flight at one time.
  size_t depth = 16;
  // What compressed writes are made of; 0: they are plain writes.
  uint64_t cluster_bytes = 0;
  // Done again and again beside the requests, by one thread; may be empty.
  std::function<absl::Status(Workload*)> meanwhile = nullptr;
  // The longest that `meanwhile` makes the disk; 0: its length does not change.
  uint64_t longest_bytes = 0;
};

class Workload {
 public:
  // All must outlive the workload.
  Workload(BlockDevice* device, ModelDisk* model, Executor* executor,
           WorkloadOptions options);

  // Works until `enough` says so; leaves nothing in flight.
  void run(const std::function<bool(const Counts& counts)>& enough);

  // Does `what` while no request is in flight, and none is submitted.  Of
  // `meanwhile` only.
  absl::Status alone(absl::FunctionRef<absl::Status()> what);

  const Counts& counts() const { return counts_; }
  // What went wrong first; empty if nothing did.
  std::string failure() const;

 private:
  struct Request;
  class Worker;

  void fail(const std::string& what);
  void do_meanwhile();
  // Of `request`, which ended with `status`: the lengths that decided.
  std::vector<uint64_t> lengths_of(const Request& request) const;
  // What is wrong with it, given these; empty if nothing is.
  std::string judge_length(const Request& request, const absl::Status& status,
                           const std::vector<uint64_t>& lengths) const;
  void judge_read(const Request& request, const std::vector<uint64_t>& lengths);
  void finish_without_threads(Worker* worker);
  bool failed() const { return failed_.load(); }
  // Judges a request that has ended, and forgets it.
  void finish(Request* request, const absl::Status& status);
  size_t reap(size_t at_least, absl::Duration timeout);

  BlockDevice* const device_;
  ModelDisk* const model_;
  Executor* const executor_;
  const WorkloadOptions options_;
  Counts counts_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  // Completions with kCancelled; must be as many as cancel() promised.
  std::atomic<uint64_t> cancelled_completions_{0};

  // Workers that are at work, and those of them that wait for alone() to end.
  std::atomic<bool> paused_{false};
  std::atomic<int> workers_{0};
  std::atomic<int> waiting_workers_{0};
  // The only one where there are no threads.
  Worker* only_worker_ = nullptr;

  mutable absl::Mutex mutex_;
  std::string failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace spindle::testing

#endif  // SPINDLE_TESTS_STRESS_WORKLOAD_H_

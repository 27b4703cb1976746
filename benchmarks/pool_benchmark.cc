// What the hand-off to an executor costs: one submitter keeps `depth` requests
// in flight.  A request is a read of 4 KiB from memory (a memfd), which takes
// little longer than its system call, or a sleep, which shows how many run at
// one time.
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "benchmark/benchmark.h"
#include "threadpool/executor.h"
#include "threadpool/parker.h"
#include "threadpool/thread_pool.h"

namespace spindle {
namespace {

constexpr size_t kBlockBytes = 4096;
constexpr size_t kBlockCount = 16384;

// A file that lies in memory.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("pool_benchmark", MFD_CLOEXEC)) {
    const std::vector<char> block(kBlockBytes, 'x');
    for (size_t i = 0; i < kBlockCount; ++i) {
      if (pwrite(fd_, block.data(), kBlockBytes,
                 static_cast<off_t>(i * kBlockBytes)) < 0)
        abort();
    }
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void read(size_t block, void* data) const {
    const iovec segment = {.iov_base = data, .iov_len = kBlockBytes};
    if (preadv(fd_, &segment, 1, static_cast<off_t>(block * kBlockBytes)) !=
        kBlockBytes)
      abort();
  }

 private:
  const int fd_;
};

class Request;

// Where completed requests wait for the submitter.
class Completions final : public BatchNotification {
 public:
  void add(Request* request) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    done_.push_back(request);
  }

  // Waits for at least one; replaces what `requests` held.
  void reap(std::vector<Request*>& requests) ABSL_LOCKS_EXCLUDED(mu_) {
    requests.clear();
    for (;;) {
      {
        absl::MutexLock lock(&mu_);
        std::swap(requests, done_);
      }
      if (!requests.empty()) return;
      submitter_.park();
    }
  }

  void batch_ended() override { submitter_.unpark(); }

 private:
  Parker submitter_;
  absl::Mutex mu_;
  std::vector<Request*> done_ ABSL_GUARDED_BY(mu_);
};

class Request : public WorkItem {
 public:
  Request(WorkQueue& queue, const std::shared_ptr<Completions>& completions)
      : queue_(queue), completions_(completions) {}
  virtual ~Request() = default;

  virtual void prepare(uint32_t random) = 0;

  void run() final {
    work();
    completions_->add(this);
    if (!queue_.notify_after_batch(completions_)) completions_->batch_ended();
  }

  void abandon() final {}

 private:
  virtual void work() = 0;

  WorkQueue& queue_;
  const std::shared_ptr<Completions>& completions_;  // outlives the pool
};

class Read final : public Request {
 public:
  using Request::Request;
  void prepare(uint32_t random) override { block_ = random % kBlockCount; }

 private:
  static const MemoryFile& file() {
    static const MemoryFile* const file = new MemoryFile;
    return *file;
  }
  void work() override { file().read(block_, data_.data()); }

  size_t block_ = 0;
  std::array<char, kBlockBytes> data_;
};

class Sleep final : public Request {
 public:
  using Request::Request;
  void prepare(uint32_t) override {}

 private:
  void work() override { absl::SleepFor(absl::Microseconds(200)); }
};

absl::Duration processor_time() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return absl::DurationFromTimespec(time);
}

// Submits as long as the benchmark lasts; one iteration is one request.
void keep_in_flight(benchmark::State& state, WorkQueue& queue,
                    Completions& completions, std::vector<Request*> done) {
  std::minstd_rand random;
  size_t in_flight = 0;
  size_t next = 0;
  for (auto _ : state) {
    if (next == done.size()) {
      completions.reap(done);
      in_flight -= done.size();
      next = 0;
    }
    done[next]->prepare(static_cast<uint32_t>(random()));
    if (!queue.submit(done[next++]))
      state.SkipWithError("the pool refused a request");
    ++in_flight;
  }
  while (in_flight > 0) {
    completions.reap(done);
    in_flight -= done.size();
  }
}

template <typename Kind>
void hand_off(benchmark::State& state) {
  const size_t depth = static_cast<size_t>(state.range(0));
  const size_t width = static_cast<size_t>(state.range(1));
  auto pool = ThreadPool::create({.width = width, .name = "bench"});
  if (!pool.ok()) return state.SkipWithError(pool.status().ToString().c_str());
  const std::shared_ptr<WorkQueue> queue =
      (*pool)->make_queue({.name = "bench", .max_workers = width});
  const auto completions = std::make_shared<Completions>();
  std::vector<std::unique_ptr<Request>> requests;
  std::vector<Request*> ready;
  for (size_t i = 0; i < depth; ++i) {
    requests.push_back(std::make_unique<Kind>(*queue, completions));
    ready.push_back(requests.back().get());
  }
  const absl::Duration before = processor_time();
  keep_in_flight(state, *queue, *completions, ready);
  const double used = absl::ToDoubleMicroseconds(processor_time() - before);
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()));
  state.counters["cpu_us_per_op"] =
      used / static_cast<double>(state.iterations());
  (*pool)->stop(Executor::StopMode::kRunQueued);
}

// The same reads, and sleeps, without a pool: one after the other.
template <typename Kind>
void bare(benchmark::State& state) {
  struct NoQueue final : WorkQueue {
    bool submit(WorkItem*) override { return false; }
    size_t submit_batch(absl::Span<WorkItem* const>) override { return 0; }
    std::shared_ptr<WorkQueue> make_turn_queue() override { return nullptr; }
    bool withdraw(WorkItem*) override { return false; }
    bool notify_after_batch(
        const std::shared_ptr<BatchNotification>&) override {
      return true;
    }
    WorkQueueCounters counters() const override { return {}; }
  } queue;
  const auto completions = std::make_shared<Completions>();
  std::vector<Request*> done;
  Kind request(queue, completions);
  std::minstd_rand random;
  for (auto _ : state) {
    request.prepare(static_cast<uint32_t>(random()));
    request.run();
    completions->reap(done);
  }
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations()));
}

BENCHMARK_TEMPLATE(bare, Read)->UseRealTime();
BENCHMARK_TEMPLATE(hand_off, Read)
    ->ArgNames({"depth", "width"})
    ->ArgsProduct({{1, 8, 32, 128}, {16, 64}})
    ->UseRealTime();
BENCHMARK_TEMPLATE(bare, Sleep)->UseRealTime();
BENCHMARK_TEMPLATE(hand_off, Sleep)
    ->ArgNames({"depth", "width"})
    ->ArgsProduct({{1, 16, 64}, {64}})
    ->UseRealTime();

}  // namespace
}  // namespace spindle

BENCHMARK_MAIN();

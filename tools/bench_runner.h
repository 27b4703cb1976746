// The loop that measures a BlockDevice: one submitting thread keeps a number
// of requests in flight through the asynchronous interface.
//
// In steady state the loop allocates nothing: buffers, vectors and completions
// are made before the clock starts.
//
// Thread safety: a run uses the device's completion queue for itself; one run
// per device at a time.
#ifndef SPINDLE_TOOLS_BENCH_RUNNER_H_
#define SPINDLE_TOOLS_BENCH_RUNNER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/block_device.h"

namespace spindle {

// Latencies with a resolution of one sixteenth: fine enough to tell medians
// apart, and of fixed size.
class FineHistogram {
 public:
  void add(absl::Duration latency);
  uint64_t count() const { return count_; }
  // An upper bound of the p-th percentile, 0 < p <= 100; zero if empty.
  absl::Duration percentile(double p) const;

 private:
  static constexpr int kSubBits = 4;
  static constexpr size_t kBuckets = 64 << kSubBits;
  static size_t bucket_of(uint64_t nanoseconds);
  static uint64_t upper_bound_of(size_t bucket);

  std::array<uint64_t, kBuckets> buckets_{};
  uint64_t count_ = 0;
};

struct BenchOptions {
  bool write = false;
  uint64_t request_count = 75000;
  // Requests in flight.  REQUIRES: > 0.
  size_t depth = 64;
  size_t request_bytes = 4096;
  uint64_t offset = 0;
  // From one request's offset to the next one's; wraps at the image's end.
  uint64_t step_bytes = 4096;
  // Offsets are random multiples of request_bytes instead.
  bool random = false;
  uint64_t seed = 1;
  // A flush after so many requests; 0: none.
  uint64_t flush_interval = 0;
  // Wait for the requests in flight before the flush, and for the flush.
  bool drain_on_flush = true;
  // What is written.
  uint8_t pattern = 0;
  // Costs two readings of the clock per request.
  bool measure_latency = false;
  // Called now and then with the number of completed requests; may be empty.
  std::function<void(uint64_t completed)> progress;
};

struct BenchResult {
  double seconds = 0;
  uint64_t operations = 0;
  FineHistogram latency;   // empty unless measured
  double cpu_seconds = 0;  // of the whole process: user and system

  double operations_per_second() const {
    return seconds > 0 ? operations / seconds : 0;
  }
  double cpu_microseconds_per_operation() const {
    return operations > 0 ? cpu_seconds * 1e6 / operations : 0;
  }
};

// Errors: kInvalidArgument for options that make no sense for the device's
// length; the first error of a request, after all in flight have completed.
absl::StatusOr<BenchResult> run_bench(BlockDevice* device,
                                      const BenchOptions& options);

}  // namespace spindle

#endif  // SPINDLE_TOOLS_BENCH_RUNNER_H_

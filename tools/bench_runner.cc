#include "tools/bench_runner.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "engine/completion_queue.h"
#include "engine/io_vector.h"
#include "engine/sector.h"

namespace spindle {
namespace {

constexpr uint64_t kFlushTag = ~uint64_t{0};
constexpr size_t kBufferAlignment = 4096;
constexpr uint64_t kProgressInterval = 1024;

uint64_t now_nanoseconds() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u +
         static_cast<uint64_t>(now.tv_nsec);
}

double cpu_seconds() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) +
           static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<uint8_t, FreeDeleter>;

// As large as all requests in flight together; never empty.
Buffer make_buffer(size_t bytes) {
  const size_t rounded = (bytes / kBufferAlignment + 1) * kBufferAlignment;
  return Buffer(
      static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, rounded)));
}

// The offsets of successive requests.
class OffsetSequence {
 public:
  OffsetSequence(const BenchOptions& options, uint64_t length_bytes)
      : random_(options.random),
        step_(options.step_bytes),
        length_(length_bytes),
        request_bytes_(options.request_bytes),
        slots_(std::max<uint64_t>(
            length_bytes / std::max<size_t>(options.request_bytes, 1), 1)),
        next_(options.offset),
        state_(options.seed) {}

  uint64_t next() {
    if (random_) return random_number() % slots_ * request_bytes_;
    const uint64_t offset = next_;
    next_ += step_;
    if (next_ >= length_) next_ %= length_;
    return offset;
  }

 private:
  // SplitMix64.
  uint64_t random_number() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  const bool random_;
  const uint64_t step_;
  const uint64_t length_;
  const uint64_t request_bytes_;
  const uint64_t slots_;
  uint64_t next_;
  uint64_t state_;
};

class Runner {
 public:
  Runner(BlockDevice* device, const BenchOptions& options)
      : device_(device),
        options_(options),
        offsets_(options, device->length_bytes()),
        whole_sectors_(is_sector_aligned(options.request_bytes) &&
                       is_sector_aligned(options.step_bytes) &&
                       is_sector_aligned(options.offset)),
        buffer_(make_buffer(options.depth * options.request_bytes)),
        started_at_(options.depth),
        completions_(options.depth + 1) {
    std::fill_n(buffer_.get(), options.depth * options.request_bytes,
                options.pattern);
    for (size_t i = 0; i < options.depth; ++i) {
      vectors_.emplace_back(buffer_.get() + i * options.request_bytes,
                            options.request_bytes);
      free_slots_.push_back(options.depth - 1 - i);
    }
  }

  absl::StatusOr<BenchResult> run() {
    const double cpu_before = cpu_seconds();
    const uint64_t started = now_nanoseconds();
    while (unfinished()) {
      submit_batch();
      reap_batch();
    }
    result_.seconds = static_cast<double>(now_nanoseconds() - started) * 1e-9;
    result_.cpu_seconds = cpu_seconds() - cpu_before;
    result_.operations = completed_;
    if (!first_error_.ok()) return first_error_;
    return result_;
  }

 private:
  bool may_submit() const {
    return first_error_.ok() && submitted_ < options_.request_count &&
           !free_slots_.empty() && !draining_;
  }
  bool in_flight() const {
    return free_slots_.size() < options_.depth || flushes_in_flight_ > 0;
  }
  bool unfinished() const {
    return in_flight() || draining_ ||
           (first_error_.ok() && submitted_ < options_.request_count);
  }

  void submit_batch() {
    if (draining_) {
      if (!in_flight()) submit_flush();
      return;
    }
    if (!may_submit()) return;
    device_->plug();
    while (may_submit()) submit_one();
    device_->unplug();
  }

  void submit_one() {
    const size_t slot = free_slots_.back();
    free_slots_.pop_back();
    const uint64_t offset = offsets_.next();
    if (options_.measure_latency) started_at_[slot] = now_nanoseconds();
    start(slot, offset);
    ++submitted_;
    if (options_.flush_interval == 0 ||
        submitted_ % options_.flush_interval != 0)
      return;
    if (options_.drain_on_flush) {
      draining_ = true;
    } else if (flushes_in_flight_ == 0) {
      submit_flush();
    }
  }

  void start(size_t slot, uint64_t offset) {
    if (options_.write) {
      if (whole_sectors_) {
        device_->aio_writev(Sector::from_byte_offset(offset), vectors_[slot],
                            slot);
      } else {
        device_->aio_pwritev(offset, vectors_[slot], slot);
      }
    } else if (whole_sectors_) {
      device_->aio_readv(Sector::from_byte_offset(offset), vectors_[slot],
                         slot);
    } else {
      device_->aio_preadv(offset, vectors_[slot], slot);
    }
  }

  void submit_flush() {
    ++flushes_in_flight_;
    device_->aio_flush(kFlushTag);
  }

  void reap_batch() {
    if (!in_flight()) return;
    const size_t count = device_->completion_queue().wait(
        1, absl::InfiniteDuration(), absl::MakeSpan(completions_));
    const uint64_t now = options_.measure_latency ? now_nanoseconds() : 0;
    for (size_t i = 0; i < count; ++i) finish(completions_[i], now);
    if (options_.progress && completed_ / kProgressInterval != reported_) {
      reported_ = completed_ / kProgressInterval;
      options_.progress(completed_);
    }
  }

  void finish(const Completion& completion, uint64_t now) {
    if (first_error_.ok() && !completion.status.ok())
      first_error_ = completion.status;
    if (completion.user_data == kFlushTag) {
      --flushes_in_flight_;
      draining_ = false;
      return;
    }
    const size_t slot = completion.user_data;
    free_slots_.push_back(slot);
    ++completed_;
    if (options_.measure_latency) {
      result_.latency.add(
          absl::Nanoseconds(static_cast<int64_t>(now - started_at_[slot])));
    }
  }

  BlockDevice* const device_;
  const BenchOptions& options_;
  OffsetSequence offsets_;
  const bool whole_sectors_;
  const Buffer buffer_;
  std::vector<IoVector> vectors_;     // by slot
  std::vector<uint64_t> started_at_;  // by slot
  std::vector<size_t> free_slots_;
  std::vector<Completion> completions_;

  uint64_t submitted_ = 0;
  uint64_t completed_ = 0;
  uint64_t reported_ = 0;  // in units of kProgressInterval
  size_t flushes_in_flight_ = 0;
  // No request starts until those in flight are done, and a flush after them.
  bool draining_ = false;
  absl::Status first_error_;
  BenchResult result_;
};

}  // namespace

size_t FineHistogram::bucket_of(uint64_t nanoseconds) {
  if (nanoseconds < (uint64_t{1} << kSubBits)) return nanoseconds;
  const int shift = std::bit_width(nanoseconds) - 1 - kSubBits;
  const uint64_t sub = (nanoseconds >> shift) & ((uint64_t{1} << kSubBits) - 1);
  return (static_cast<size_t>(shift + 1) << kSubBits) + sub;
}

uint64_t FineHistogram::upper_bound_of(size_t bucket) {
  const uint64_t sub = bucket & ((size_t{1} << kSubBits) - 1);
  const size_t octave = bucket >> kSubBits;
  if (octave == 0) return sub;
  return ((((uint64_t{1} << kSubBits) + sub + 1) << (octave - 1))) - 1;
}

void FineHistogram::add(absl::Duration latency) {
  const int64_t nanoseconds =
      std::max<int64_t>(absl::ToInt64Nanoseconds(latency), 0);
  ++buckets_[bucket_of(static_cast<uint64_t>(nanoseconds))];
  ++count_;
}

absl::Duration FineHistogram::percentile(double p) const {
  if (count_ == 0) return absl::ZeroDuration();
  const double wanted = p / 100 * static_cast<double>(count_);
  uint64_t seen = 0;
  for (size_t i = 0; i < kBuckets; ++i) {
    seen += buckets_[i];
    if (buckets_[i] != 0 && static_cast<double>(seen) >= wanted) {
      return absl::Nanoseconds(static_cast<int64_t>(upper_bound_of(i)));
    }
  }
  return absl::InfiniteDuration();
}

absl::StatusOr<BenchResult> run_bench(BlockDevice* device,
                                      const BenchOptions& options) {
  const uint64_t length = device->length_bytes();
  if (options.depth == 0)
    return absl::InvalidArgumentError("depth is 0: must be at least 1");
  if (options.request_count > 0 && length == 0) {
    return absl::InvalidArgumentError("the image is empty");
  }
  if (options.random && options.request_bytes > length) {
    return absl::InvalidArgumentError(
        absl::StrCat("a request has ", options.request_bytes,
                     " bytes, the image has ", length));
  }
  return Runner(device, options).run();
}

}  // namespace spindle

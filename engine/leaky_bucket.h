// LeakyBucket: one limit on a rate, as QEMU documents it in docs/throttle.txt.
//
// What is done flows into the bucket, which leaks at the rate `average`.  Once
// it is full, requests wait until there is room: one tenth of a second's worth
// without a burst rate, else what `burst_length_seconds` at the burst rate
// `max` brings.  Bursts longer than a second have a second bucket, which leaks
// at the burst rate and holds a tenth of a second.
//
// Times are the caller's, and never go back.
//
// Thread safety: values; guarded by their user.
#ifndef SPINDLE_ENGINE_LEAKY_BUCKET_H_
#define SPINDLE_ENGINE_LEAKY_BUCKET_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace spindle {

// Units per second; 0: no limit.
struct BucketLimit {
  uint64_t average = 0;
  uint64_t max = 0;  // 0: no burst rate
  uint64_t burst_length_seconds = 1;
  bool operator==(const BucketLimit&) const = default;
};

class LeakyBucket {
 public:
  LeakyBucket() = default;
  explicit LeakyBucket(const BucketLimit& limit) : limit_(limit) {}

  bool is_limited() const { return limit_.average != 0; }

  void leak(absl::Duration passed) {
    if (!is_limited()) return;
    const double seconds = absl::ToDoubleSeconds(passed);
    level_ = std::max(level_ - as_double(limit_.average) * seconds, 0.0);
    burst_level_ =
        std::max(burst_level_ - as_double(limit_.max) * seconds, 0.0);
  }

  // How long until the next request may start.
  absl::Duration wait() const {
    if (!is_limited()) return absl::ZeroDuration();
    const double size =
        limit_.max == 0
            ? as_double(limit_.average) / 10
            : as_double(limit_.max) * as_double(limit_.burst_length_seconds);
    if (level_ > size)
      return absl::Seconds((level_ - size) / as_double(limit_.average));
    const double burst_size = as_double(limit_.max) / 10;
    if (has_burst_bucket() && burst_level_ > burst_size)
      return absl::Seconds((burst_level_ - burst_size) / as_double(limit_.max));
    return absl::ZeroDuration();
  }

  void add(double units) {
    level_ += units;
    if (has_burst_bucket()) burst_level_ += units;
  }

 private:
  static double as_double(uint64_t value) { return static_cast<double>(value); }
  bool has_burst_bucket() const {
    return limit_.max != 0 && limit_.burst_length_seconds > 1;
  }

  BucketLimit limit_;
  double level_ = 0;
  double burst_level_ = 0;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_LEAKY_BUCKET_H_

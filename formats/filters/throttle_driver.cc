#include "formats/filters/throttle_driver.h"

#include <map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace spindle {

using Direction = ThrottleGroup::Direction;

ThrottleDriver::ThrottleDriver(std::shared_ptr<BlockDriver> child,
                               std::shared_ptr<ThrottleGroup> group)
    : FilterDriver(std::move(child)), group_(group), member_(group) {}

std::shared_ptr<ThrottleGroup> ThrottleDriver::take_over_throttle() {
  taken_over_.store(true, std::memory_order_release);
  return group_;
}

void ThrottleDriver::wait(Direction direction, uint64_t bytes) {
  if (!taken_over_.load(std::memory_order_acquire))
    member_.wait_here(direction, bytes);
}

absl::Status ThrottleDriver::read(const IoVector& qiov, Sector sector) {
  wait(Direction::kRead, qiov.length_bytes());
  return child().read(qiov, sector);
}

absl::Status ThrottleDriver::write(const IoVector& qiov, Sector sector) {
  wait(Direction::kWrite, qiov.length_bytes());
  return child().write(qiov, sector);
}

absl::Status ThrottleDriver::discard(ByteRange range) {
  wait(Direction::kWrite, range.length);
  return child().discard(range);
}

absl::Status ThrottleDriver::write_zeroes(ByteRange range,
                                          WriteZeroesFlags flags) {
  wait(Direction::kWrite, range.length);
  return child().write_zeroes(range, flags);
}

absl::Status ThrottleDriver::write_compressed(const IoVector& qiov,
                                              Sector sector) {
  wait(Direction::kWrite, qiov.length_bytes());
  return child().write_compressed(qiov, sector);
}

uint64_t ThrottleDriver::try_read(const IoVector& qiov, Sector sector) {
  return taken_over_.load(std::memory_order_acquire)
             ? child().try_read(qiov, sector)
             : 0;
}

uint64_t ThrottleDriver::try_write(const IoVector& qiov, Sector sector) {
  return taken_over_.load(std::memory_order_acquire)
             ? child().try_write(qiov, sector)
             : 0;
}

// ---- Opening ----------------------------------------------------------------

absl::StatusOr<ThrottleLimits> take_throttle_limits(FilterOptions* options) {
  ThrottleLimits limits;
  const struct {
    absl::string_view name;
    BucketLimit* limit;
  } rows[] = {
      {"iops-total", &limits.iops_total}, {"iops-read", &limits.iops_read},
      {"iops-write", &limits.iops_write}, {"bps-total", &limits.bps_total},
      {"bps-read", &limits.bps_read},     {"bps-write", &limits.bps_write}};
  for (const auto& row : rows) {
    options->take_size(std::string(row.name), &row.limit->average);
    options->take_size(absl::StrCat(row.name, "-max"), &row.limit->max);
    options->take_number(absl::StrCat(row.name, "-max-length"),
                         &row.limit->burst_length_seconds);
  }
  options->take_size("iops-size", &limits.iops_size_bytes);
  if (absl::Status status = options->finish(); !status.ok()) return status;
  if (absl::Status status = limits.check(); !status.ok()) return status;
  return limits;
}

namespace {

// The groups that have names, as long as somebody uses them.
class NamedGroups {
 public:
  absl::StatusOr<std::shared_ptr<ThrottleGroup>> find_or_make(
      const std::string& name, const ThrottleLimits& limits)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    std::weak_ptr<ThrottleGroup>& known = groups_[name];
    std::shared_ptr<ThrottleGroup> group = known.lock();
    if (group == nullptr) {
      group = std::make_shared<ThrottleGroup>(limits);
      known = group;
    } else if (!(limits == ThrottleLimits()) && !(limits == group->limits())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "throttle-group '", name, "' is in use with other limits"));
    }
    return group;
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::weak_ptr<ThrottleGroup>> groups_
      ABSL_GUARDED_BY(mutex_);
};

class ThrottleFilter final : public DriverFilter {
 public:
  absl::string_view name() const override { return "throttle"; }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child,
      const OpenOptions& options) const override {
    FilterOptions own(name(), options.driver_options);
    const auto name = own.take_text("throttle-group");
    const absl::StatusOr<ThrottleLimits> limits = take_throttle_limits(&own);
    if (!limits.ok()) return limits.status();
    std::shared_ptr<ThrottleGroup> group;
    if (name.has_value()) {
      static auto* const groups = new NamedGroups;
      absl::StatusOr<std::shared_ptr<ThrottleGroup>> named =
          groups->find_or_make(*name, *limits);
      if (!named.ok()) return named.status();
      group = *std::move(named);
    } else {
      group = std::make_shared<ThrottleGroup>(*limits);
    }
    return std::make_shared<ThrottleDriver>(std::move(child), std::move(group));
  }
};

}  // namespace

const DriverFilter* throttle_filter() {
  static const auto* const filter = new ThrottleFilter;
  return filter;
}

}  // namespace spindle

#include "formats/filters/null_driver.h"

#include <limits>
#include <memory>
#include <string>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "formats/filters/filter_options.h"

namespace spindle {

NullDriver::NullDriver(absl::string_view name, const NullOptions& options)
    : name_(name), options_(options), read_only_(options.read_only) {}

void NullDriver::sleep() const {
  if (options_.latency > absl::ZeroDuration()) absl::SleepFor(options_.latency);
}

void NullDriver::fill(const IoVector& qiov) const {
  if (options_.read_zeroes) qiov.fill(0);
}

absl::Status NullDriver::read(const IoVector& qiov, Sector) {
  sleep();
  fill(qiov);
  return absl::OkStatus();
}

absl::Status NullDriver::write(const IoVector&, Sector) {
  ABSL_ASSERT(!read_only());
  sleep();
  return absl::OkStatus();
}

absl::Status NullDriver::flush() {
  sleep();
  return absl::OkStatus();
}

uint64_t NullDriver::try_read(const IoVector& qiov, Sector) {
  if (options_.latency > absl::ZeroDuration()) return 0;
  fill(qiov);
  return qiov.length_bytes();
}

uint64_t NullDriver::try_write(const IoVector& qiov, Sector) {
  return options_.latency > absl::ZeroDuration() ? 0 : qiov.length_bytes();
}

std::string NullDriver::filename() const { return absl::StrCat(name_, "://"); }

Capabilities NullDriver::capabilities() const {
  return {Capability::kBlockStatus, Capability::kReopen, Capability::kTryRead,
          Capability::kTryWrite};
}

ImageInfo NullDriver::info() const {
  ImageInfo info = BlockDriver::info();
  info.actual_size_bytes = 0;
  return info;
}

absl::StatusOr<BlockStatus> NullDriver::block_status(ByteRange range,
                                                     BlockStatusScope) {
  BlockStatus status;
  status.length = range.length;
  status.allocated = options_.read_zeroes;
  status.zero = options_.read_zeroes;
  if (options_.read_zeroes) status.host_offset = range.offset;
  return status;
}

absl::Status NullDriver::reopen(const ReopenOptions& options) {
  if (absl::Status status = options.refuse_options(); !status.ok())
    return status;
  read_only_.store(options.read_only);
  return absl::OkStatus();
}

// ---- Opening ----------------------------------------------------------------

namespace {

class NullFilter final : public DriverFilter {
 public:
  explicit NullFilter(absl::string_view name) : name_(name) {}

  absl::string_view name() const override { return name_; }
  absl::string_view child_option() const override { return {}; }
  bool is_storage() const override { return true; }
  absl::StatusOr<NameMeaning> parse_name(
      const std::string& name) const override {
    const std::string only = absl::StrCat(name_, "://");
    if (name == only) return NameMeaning{};
    return absl::InvalidArgumentError(absl::StrCat(
        "The only allowed filename for this driver is '", only, "'"));
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver>, const OpenOptions& options) const override {
    FilterOptions own(name_, options.driver_options);
    NullOptions wanted{.read_only = options.read_only};
    uint64_t latency_ns = 0;
    own.take_size("size", &wanted.length_bytes);
    own.take_number("latency-ns", &latency_ns);
    own.take_bool("read-zeroes", &wanted.read_zeroes);
    if (wanted.length_bytes > uint64_t{std::numeric_limits<int64_t>::max()})
      own.note(too_much("size", wanted.length_bytes));
    if (latency_ns > uint64_t{std::numeric_limits<int64_t>::max()})
      own.note(too_much("latency-ns", latency_ns));
    if (absl::Status status = own.finish(); !status.ok()) return status;
    wanted.latency = absl::Nanoseconds(latency_ns);
    return std::make_shared<NullDriver>(name_, wanted);
  }

 private:
  static absl::Status too_much(absl::string_view option, uint64_t value) {
    return absl::InvalidArgumentError(absl::StrCat(
        option, " is invalid: ", value, " is more than the limit of ",
        std::numeric_limits<int64_t>::max()));
  }

  const absl::string_view name_;
};

}  // namespace

const DriverFilter* null_co_filter() {
  static const auto* const filter = new NullFilter("null-co");
  return filter;
}

const DriverFilter* null_aio_filter() {
  static const auto* const filter = new NullFilter("null-aio");
  return filter;
}

}  // namespace spindle

#include "formats/filters/blkdebug_driver.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "formats/filters/filter_options.h"

namespace spindle {
namespace {

uint64_t random_seed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// The largest power of two that divides `value`.
uint32_t power_of_two_in(uint64_t value) {
  return static_cast<uint32_t>(value & (~value + 1));
}

// Calls `piece` for parts of at most `most` bytes; the generic layer knows no
// such limit.
absl::Status in_pieces(ByteRange range, uint64_t most,
                       absl::FunctionRef<absl::Status(ByteRange)> piece) {
  if (most == 0) return piece(range);
  while (!range.empty()) {
    const uint64_t length = std::min(range.length, most);
    absl::Status status = piece({range.offset, length});
    if (!status.ok()) return status;
    range = {range.offset + length, range.length - length};
  }
  return absl::OkStatus();
}

}  // namespace

BlkdebugDriver::BlkdebugDriver(std::shared_ptr<BlockDriver> child,
                               const BlkdebugConfig& config)
    : FilterDriver(std::move(child)),
      limits_(config.limits),
      child_alignment_(this->child().limits().request_alignment_bytes),
      child_observer_(this->child().access_observer()),
      rules_(config.seed.has_value() ? *config.seed : random_seed()) {
  for (const BlkdebugInjectError& rule : config.errors) rules_.add(rule);
  for (const BlkdebugSetState& rule : config.set_states) rules_.add(rule);
}

absl::StatusOr<std::shared_ptr<BlkdebugDriver>> BlkdebugDriver::create(
    std::shared_ptr<BlockDriver> child, const BlkdebugConfig& config) {
  absl::Status status = check_blkdebug_limits(
      config.limits, child->limits().request_alignment_bytes);
  if (!status.ok()) return status;
  std::shared_ptr<BlkdebugDriver> driver(
      new BlkdebugDriver(std::move(child), config));
  driver->rules_.raise(blkdebug_event("none"));
  return driver;
}

// ---- What it is -------------------------------------------------------------

uint64_t BlkdebugDriver::alignment() const {
  return std::max(limits_.align, child_alignment_);
}

uint64_t BlkdebugDriver::child_end() const {
  return align_up(length_bytes(), child_alignment_);
}

DriverLimits BlkdebugDriver::limits() const {
  DriverLimits limits = child().limits();
  limits.request_alignment_bytes = static_cast<uint32_t>(alignment());
  if (limits_.max_transfer != 0)
    limits.max_transfer_bytes = limits_.max_transfer;
  if (limits_.opt_discard != 0)
    limits.discard_alignment_bytes = power_of_two_in(limits_.opt_discard);
  if (limits_.opt_write_zero != 0) {
    limits.write_zeroes_alignment_bytes =
        power_of_two_in(limits_.opt_write_zero);
  }
  return limits;
}

Capabilities BlkdebugDriver::capabilities() const {
  Capabilities capabilities = child().capabilities();
  capabilities.remove(Capability::kTryRead);
  capabilities.remove(Capability::kTryWrite);
  return capabilities;
}

ImageInfo BlkdebugDriver::info() const {
  ImageInfo info = FilterDriver::info();
  info.format_specific.emplace_back("seed", absl::StrCat(rules_.seed()));
  return info;
}

// ---- Requests ---------------------------------------------------------------

absl::Status BlkdebugDriver::before_access(const Access& access) {
  for (const BlkdebugEvent event : blkdebug_events_of(access.purpose)) {
    rules_.raise(event);
  }
  if (child_observer_ == nullptr) return absl::OkStatus();
  return child_observer_->before_access(access);
}

// The last sector may be longer here than below.
absl::Status BlkdebugDriver::read(const IoVector& qiov, Sector sector) {
  const ByteRange range{sector.byte_offset(), qiov.length_bytes()};
  absl::Status status = rules_.check(BlkdebugIo::kRead, range);
  if (!status.ok()) return status;
  const uint64_t end = child_end();
  if (range.end() <= end) return child().read(qiov, sector);
  const uint64_t stored = end > range.offset ? end - range.offset : 0;
  qiov.slice(stored, range.length - stored).fill(0);
  if (stored == 0) return absl::OkStatus();
  return child().read(qiov.slice(0, stored), sector);
}

absl::Status BlkdebugDriver::write(const IoVector& qiov, Sector sector) {
  static const BlkdebugEvent before = blkdebug_event("pwritev");
  static const BlkdebugEvent after = blkdebug_event("pwritev_done");
  const ByteRange range{sector.byte_offset(), qiov.length_bytes()};
  rules_.raise(before);
  absl::Status status = rules_.check(BlkdebugIo::kWrite, range);
  if (status.ok()) {
    const uint64_t end = child_end();
    // Beyond the last sector the driver below grows; within it, it does not.
    const bool stops_at_end =
        range.end() > end && range.offset < end &&
        range.end() <= align_up(length_bytes(), alignment());
    status = child().write(
        stops_at_end ? qiov.slice(0, end - range.offset) : qiov, sector);
  }
  rules_.raise(after);
  return status;
}

absl::Status BlkdebugDriver::flush() {
  absl::Status status = rules_.check(BlkdebugIo::kFlush, {});
  return status.ok() ? child().flush() : status;
}

uint64_t BlkdebugDriver::try_read(const IoVector&, Sector) { return 0; }
uint64_t BlkdebugDriver::try_write(const IoVector&, Sector) { return 0; }

absl::Status BlkdebugDriver::discard(ByteRange range) {
  return in_pieces(range, limits_.max_discard, [this](ByteRange piece) {
    absl::Status status = rules_.check(BlkdebugIo::kDiscard, piece);
    return status.ok() ? child().discard(piece) : status;
  });
}

absl::Status BlkdebugDriver::write_zeroes(ByteRange range,
                                          WriteZeroesFlags flags) {
  return in_pieces(range, limits_.max_write_zero, [&](ByteRange piece) {
    absl::Status status = rules_.check(BlkdebugIo::kWriteZeroes, piece);
    return status.ok() ? child().write_zeroes(piece, flags) : status;
  });
}

absl::StatusOr<BlockStatus> BlkdebugDriver::block_status(
    ByteRange range, BlockStatusScope scope) {
  absl::Status status = rules_.check(BlkdebugIo::kBlockStatus, range);
  if (!status.ok()) return status;
  return child().block_status(range, scope);
}

absl::Status BlkdebugDriver::write_compressed(const IoVector& qiov,
                                              Sector sector) {
  absl::Status status = rules_.check(
      BlkdebugIo::kWrite, {sector.byte_offset(), qiov.length_bytes()});
  return status.ok() ? child().write_compressed(qiov, sector) : status;
}

// ---- Opening ----------------------------------------------------------------

namespace {

class BlkdebugFilter final : public DriverFilter {
 public:
  absl::string_view name() const override { return "blkdebug"; }
  absl::string_view child_option() const override { return "image"; }
  bool is_storage() const override { return true; }
  // "blkdebug:CONFIG:FILENAME"; anything else is the name of the image.
  absl::StatusOr<NameMeaning> parse_name(
      const std::string& name) const override {
    constexpr absl::string_view kPrefix = "blkdebug:";
    if (!absl::StartsWith(name, kPrefix)) return NameMeaning{{}, name};
    const size_t config = kPrefix.size();
    const size_t image = name.find(':', config);
    if (image == std::string::npos) {
      return absl::InvalidArgumentError(
          "blkdebug requires both config file and image path");
    }
    NameMeaning meaning{{}, name.substr(image + 1)};
    if (image > config)
      meaning.options["config"] = name.substr(config, image - config);
    return meaning;
  }
  absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> child,
      const OpenOptions& options) const override {
    FilterOptions own(name(), options.driver_options);
    const absl::StatusOr<BlkdebugConfig> config = take_blkdebug_options(&own);
    if (!config.ok()) return config.status();
    return BlkdebugDriver::create(std::move(child), *config);
  }
};

}  // namespace

BlkdebugDriver* find_blkdebug(BlockDriver* top) {
  for (BlockDriver* driver = top; driver != nullptr; driver = driver->below()) {
    if (auto* blkdebug = dynamic_cast<BlkdebugDriver*>(driver)) return blkdebug;
  }
  return nullptr;
}

const DriverFilter* blkdebug_filter() {
  static const auto* const filter = new BlkdebugFilter;
  return filter;
}

}  // namespace spindle

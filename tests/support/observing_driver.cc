#include "tests/support/observing_driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/metadata_mutex.h"
#include "gtest/gtest.h"

namespace spindle {
namespace testing {
namespace {

uint64_t bit_of(Purpose purpose) {
  static_assert(kPurposeCount <= 64);
  return uint64_t{1} << static_cast<int>(purpose);
}

}  // namespace

bool AccessMatch::fits(const Access& access) const {
  if (purpose.has_value() && *purpose != access.purpose) return false;
  if (kind.has_value() && *kind != access.kind) return false;
  return !range.has_value() || range->overlaps(access.range);
}

// ---- Stop -------------------------------------------------------------------

ObservingDriver::Stop::Stop(std::shared_ptr<Suspension> suspension)
    : suspension_(std::move(suspension)) {}

ObservingDriver::Stop::~Stop() { resume(); }

void ObservingDriver::Stop::wait_until_reached() {
  suspension_->wait_until_reached();
}

bool ObservingDriver::Stop::reached() const { return suspension_->reached(); }

void ObservingDriver::Stop::resume() { suspension_->resume(); }

// ---- Observing --------------------------------------------------------------

ObservingDriver::ObservingDriver(std::shared_ptr<BlockDriver> child)
    : FilterDriver(std::move(child)),
      child_observer_(this->child().access_observer()) {}

ObservingDriver::~ObservingDriver() = default;

void ObservingDriver::allow_metadata_mutex_for(
    std::initializer_list<Purpose> purposes) {
  for (Purpose purpose : purposes) allowed_purposes_ |= bit_of(purpose);
}

std::unique_ptr<ObservingDriver::Stop> ObservingDriver::stop_at(
    AccessMatch match, int nth) {
  auto suspension = std::make_shared<Suspension>();
  absl::MutexLock lock(&mutex_);
  stops_.push_back(StopRule{match, nth, suspension});
  has_rules_.store(true);
  return std::unique_ptr<Stop>(new Stop(std::move(suspension)));
}

void ObservingDriver::fail_at(AccessMatch match, int error_number, int nth,
                              Repeat repeat) {
  absl::MutexLock lock(&mutex_);
  failure_rules_.push_back(FailureRule{match, nth, error_number, repeat});
  has_rules_.store(true);
}

void ObservingDriver::clear_failures() {
  absl::MutexLock lock(&mutex_);
  failure_rules_.clear();
}

uint64_t ObservingDriver::count(Purpose purpose, AccessKind kind) const {
  return counts_[static_cast<int>(purpose)][static_cast<int>(kind)].load();
}

uint64_t ObservingDriver::count(Purpose purpose) const {
  uint64_t sum = 0;
  for (const auto& counter : counts_[static_cast<int>(purpose)]) sum += counter;
  return sum;
}

uint64_t ObservingDriver::count(AccessKind kind) const {
  uint64_t sum = 0;
  for (const auto& row : counts_) sum += row[static_cast<int>(kind)];
  return sum;
}

uint64_t ObservingDriver::total_count() const {
  uint64_t sum = 0;
  for (const auto& row : counts_) {
    for (const auto& counter : row) sum += counter;
  }
  return sum;
}

void ObservingDriver::reset_counts() {
  for (auto& row : counts_) {
    for (auto& counter : row) counter.store(0);
  }
}

void ObservingDriver::set_hook(
    std::function<absl::Status(const Access&)> hook) {
  hook_ = std::move(hook);
}

absl::Status ObservingDriver::before_access(const Access& access) {
  counts_[static_cast<int>(access.purpose)][static_cast<int>(access.kind)]
      .fetch_add(1, std::memory_order_relaxed);
  check_locks(access);
  if (hook_) {
    if (absl::Status status = hook_(access); !status.ok()) return status;
  }
  if (has_rules_.load()) {
    for (const auto& suspension : take_due_stops(access)) {
      suspension->stop_here();
    }
    if (absl::Status status = due_failure(access); !status.ok()) return status;
  }
  if (child_observer_ == nullptr) return absl::OkStatus();
  return child_observer_->before_access(access);
}

void ObservingDriver::check_locks(const Access& access) {
  const int held = MetadataMutex::held_by_this_thread();
  if (held == 0 || (allowed_purposes_ & bit_of(access.purpose)) != 0) return;
  lock_violations_.fetch_add(1);
  ADD_FAILURE() << "access '" << purpose_name(access.purpose) << "' at offset "
                << access.range.offset << " while the thread holds " << held
                << " metadata mutexes";
}

std::vector<std::shared_ptr<Suspension>> ObservingDriver::take_due_stops(
    const Access& access) {
  std::vector<std::shared_ptr<Suspension>> due;
  absl::MutexLock lock(&mutex_);
  for (StopRule& rule : stops_) {
    if (!rule.match.fits(access)) continue;
    if (--rule.countdown == 0) due.push_back(rule.suspension);
  }
  const auto used = [](const StopRule& rule) { return rule.countdown <= 0; };
  stops_.erase(std::remove_if(stops_.begin(), stops_.end(), used),
               stops_.end());
  return due;
}

absl::Status ObservingDriver::due_failure(const Access& access) {
  absl::MutexLock lock(&mutex_);
  for (FailureRule& rule : failure_rules_) {
    if (!rule.match.fits(access)) continue;
    --rule.countdown;
    const bool due = rule.repeat == Repeat::kOnce ? rule.countdown == 0
                                                  : rule.countdown <= 0;
    if (!due) continue;
    failures_.fetch_add(1);
    return errno_status(
        rule.error_number,
        absl::StrCat("injected into ", purpose_name(access.purpose)));
  }
  return absl::OkStatus();
}

}  // namespace testing
}  // namespace spindle

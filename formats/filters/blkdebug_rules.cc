#include "formats/filters/blkdebug_rules.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {
namespace {

constexpr absl::string_view kIoNames[] = {"read",    "write", "write-zeroes",
                                          "discard", "flush", "block-status"};

bool fits(const BlkdebugInjectError& rule, BlkdebugIo io, ByteRange range) {
  if (rule.io.has_value() ? *rule.io != io : io == BlkdebugIo::kBlockStatus)
    return false;
  return !rule.sector.has_value() ||
         range.overlaps({rule.sector->byte_offset(), 1});
}

absl::Status not_found(const std::string& tag) {
  return absl::NotFoundError(absl::StrCat("no breakpoint '", tag, "'"));
}

}  // namespace

std::optional<BlkdebugIo> find_blkdebug_io(absl::string_view name) {
  const auto found = std::find(std::begin(kIoNames), std::end(kIoNames), name);
  if (found == std::end(kIoNames)) return std::nullopt;
  return static_cast<BlkdebugIo>(found - std::begin(kIoNames));
}

void BlkdebugRules::add(const BlkdebugInjectError& rule) {
  absl::MutexLock lock(&mutex_);
  errors_.push_back(std::make_shared<ErrorRule>(ErrorRule{rule}));
}

void BlkdebugRules::add(const BlkdebugSetState& rule) {
  absl::MutexLock lock(&mutex_);
  set_states_.push_back(rule);
}

// ---- Events -----------------------------------------------------------------

void BlkdebugRules::raise(BlkdebugEvent event) {
  std::vector<std::shared_ptr<Suspension>> due;
  {
    absl::MutexLock lock(&mutex_);
    due = raise_locked(event);
  }
  for (const auto& suspension : due) suspension->stop_here();
}

// Every rule sees the state as it was before the event.
std::vector<std::shared_ptr<Suspension>> BlkdebugRules::raise_locked(
    BlkdebugEvent event) {
  const int state = state_;
  bool replaced = false;
  for (const std::shared_ptr<ErrorRule>& rule : errors_) {
    const BlkdebugInjectError& wanted = rule->wanted;
    if (wanted.event != event || rule->is_used_up) continue;
    if (wanted.state != 0 && wanted.state != state) continue;
    if (!replaced) active_.clear();
    replaced = true;
    active_.insert(active_.begin(), rule);
  }
  for (const BlkdebugSetState& rule : set_states_) {
    if (rule.event != event || (rule.state != 0 && rule.state != state))
      continue;
    state_ = rule.new_state;
  }
  std::vector<std::shared_ptr<Suspension>> due;
  for (auto it = breakpoints_.begin(); it != breakpoints_.end();) {
    if (it->event != event) {
      ++it;
      continue;
    }
    due.push_back(std::make_shared<Suspension>());
    newly_suspended_.push_back(it->tag);
    suspended_.push_back({std::move(it->tag), due.back()});
    it = breakpoints_.erase(it);
  }
  return due;
}

// ---- Errors -----------------------------------------------------------------

absl::Status BlkdebugRules::check(BlkdebugIo io, ByteRange range) {
  absl::MutexLock lock(&mutex_);
  for (auto it = active_.begin(); it != active_.end(); ++it) {
    const BlkdebugInjectError wanted = (*it)->wanted;
    if (!fits(wanted, io, range)) continue;
    if (wanted.error_number == 0) return absl::OkStatus();
    if (wanted.probability < 1 && std::uniform_real_distribution<double>(
                                      0, 1)(random_) >= wanted.probability) {
      return absl::OkStatus();
    }
    if (wanted.once) {
      (*it)->is_used_up = true;
      active_.erase(it);
    }
    std::string message = absl::StrCat("injected by blkdebug at ",
                                       blkdebug_event_name(wanted.event));
    if (wanted.probability < 1) absl::StrAppend(&message, ", seed ", seed_);
    return errno_status(wanted.error_number, message);
  }
  return absl::OkStatus();
}

// ---- Breakpoints ------------------------------------------------------------

void BlkdebugRules::set_breakpoint(BlkdebugEvent event,
                                   const std::string& tag) {
  absl::MutexLock lock(&mutex_);
  breakpoints_.push_back({event, tag});
}

absl::Status BlkdebugRules::resume(const std::string& tag) {
  absl::MutexLock lock(&mutex_);
  const auto found = std::find_if(
      suspended_.begin(), suspended_.end(),
      [&](const Suspended& suspended) { return suspended.tag == tag; });
  if (found == suspended_.end()) return not_found(tag);
  found->suspension->resume();
  suspended_.erase(found);
  return absl::OkStatus();
}

absl::Status BlkdebugRules::remove_breakpoint(const std::string& tag,
                                              size_t* resumed) {
  absl::MutexLock lock(&mutex_);
  const size_t removed = std::erase_if(
      breakpoints_,
      [&](const Breakpoint& breakpoint) { return breakpoint.tag == tag; });
  const size_t let_go =
      std::erase_if(suspended_, [&](const Suspended& suspended) {
        if (suspended.tag == tag) suspended.suspension->resume();
        return suspended.tag == tag;
      });
  if (resumed != nullptr) *resumed = let_go;
  return removed == 0 ? not_found(tag) : absl::OkStatus();
}

void BlkdebugRules::resume_all() {
  absl::MutexLock lock(&mutex_);
  breakpoints_.clear();
  for (const Suspended& suspended : suspended_) suspended.suspension->resume();
  suspended_.clear();
}

bool BlkdebugRules::is_suspended_locked(const std::string& tag) const {
  return std::any_of(
      suspended_.begin(), suspended_.end(),
      [&](const Suspended& suspended) { return suspended.tag == tag; });
}

bool BlkdebugRules::is_suspended(const std::string& tag) const {
  absl::MutexLock lock(&mutex_);
  return is_suspended_locked(tag);
}

void BlkdebugRules::wait_until_suspended(const std::string& tag) const {
  wait_until_suspended(tag, absl::InfiniteDuration());
}

bool BlkdebugRules::wait_until_suspended(const std::string& tag,
                                         absl::Duration timeout) const {
  const auto suspended = [this, &tag]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return is_suspended_locked(tag);
  };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&suspended), timeout);
}

size_t BlkdebugRules::suspended_count() const {
  absl::MutexLock lock(&mutex_);
  return suspended_.size();
}

std::vector<std::string> BlkdebugRules::take_newly_suspended() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(newly_suspended_, {});
}

}  // namespace spindle

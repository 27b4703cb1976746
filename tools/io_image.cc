#include "tools/io_image.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/completion_queue.h"
#include "engine/jobs/sector_status.h"
#include "engine/node_options.h"
#include "threadpool/default_executor.h"

namespace spindle {
namespace {

constexpr size_t kMisalignmentBytes = 16;

// How long a wait for requests lasts before it looks whether they are stopped.
constexpr absl::Duration kPatience = absl::Milliseconds(50);

// What of `node` is not a driver's own.
absl::Status check_access(const NodeOptions& node,
                          const IoImage::Changes& changes, bool read_only) {
  if (node.read_only.has_value() && changes.read_only.has_value())
    return absl::InvalidArgumentError("Cannot set both -r/-w and 'read-only'");
  if ((node.direct.has_value() || node.no_flush.has_value()) &&
      changes.cache_mode.has_value()) {
    return absl::InvalidArgumentError(
        "Cannot set both -c and the cache options");
  }
  if (node.force_share.has_value())
    return absl::InvalidArgumentError("Cannot change the option 'force-share'");
  // Commands that write are promised that they can: -r takes it back.
  if (node.read_only.value_or(false) && !read_only) {
    return absl::InvalidArgumentError(
        "Read-only block node cannot support read-write users");
  }
  return absl::OkStatus();
}

}  // namespace

IoBuffer::IoBuffer(uint64_t length_bytes, bool misaligned, uint8_t fill)
    : skip_(misaligned ? kMisalignmentBytes : 0),
      bytes_(length_bytes + skip_, fill) {}

absl::StatusOr<std::unique_ptr<IoImage>> IoImage::open(
    const IoTarget& target, std::shared_ptr<const SecretStore> secrets) {
  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor({});
  if (!executor.ok()) return executor.status();
  const absl::StatusOr<OpenedTarget> opened =
      open_target(target, std::move(secrets));
  if (!opened.ok()) return opened.status();
  BlockDeviceOptions options;
  options.cache_mode = opened->cache_mode;
  options.detect_zeroes = opened->detect_zeroes;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      BlockDevice::create(opened->driver, executor->get(), options);
  if (!device.ok()) {
    if (opened->overlay_fd >= 0) ::close(opened->overlay_fd);
    return device.status();
  }
  return std::unique_ptr<IoImage>(
      new IoImage(target, *opened, *std::move(executor), *std::move(device)));
}

IoImage::~IoImage() {
  if (overlay_fd_ >= 0) ::close(overlay_fd_);
}

std::string IoImage::own_filename() const {
  return overlay_fd_ >= 0 ? absl::StrCat("/proc/self/fd/", overlay_fd_)
                          : device_->driver().filename();
}

IoImage::IoImage(IoTarget target, const OpenedTarget& opened,
                 std::unique_ptr<Executor> executor,
                 std::unique_ptr<BlockDevice> device)
    : target_(std::move(target)),
      options_(target_.options),
      overlay_fd_(opened.overlay_fd),
      ignores_discards_(opened.ignore_discards),
      executor_(std::move(executor)),
      device_(std::move(device)) {}

uint64_t IoImage::length_bytes() const { return whole_sectors_bytes(*device_); }

bool IoImage::is_outside(uint64_t offset, uint64_t length) const {
  return offset > length_bytes() || length > length_bytes() - offset;
}

IoVector IoImage::inside(const IoVector& qiov, uint64_t offset) const {
  const uint64_t end = device_->length_bytes();
  // What is wholly outside stays as it is: the device refuses it.
  if (is_outside(offset, qiov.length_bytes())) return qiov;
  const uint64_t left = end - std::min(end, offset);
  return qiov.slice(0, std::min(qiov.length_bytes(), left));
}

absl::Status IoImage::grow_within_sector(uint64_t offset, uint64_t length) {
  if (length == 0 || is_outside(offset, length) ||
      offset + length <= device_->length_bytes() ||
      device_->driver().format_name() != "raw") {
    return absl::OkStatus();
  }
  // A change of length waits for what is under way, which may be stopped.
  if (!collect_all()) return absl::OkStatus();
  const absl::Status status = device_->set_length(offset + length);
  return absl::IsUnimplemented(status) ? absl::OkStatus() : status;
}

absl::Status IoImage::reopen(Changes changes) {
  OptionMap& options = changes.options;
  for (auto it = options.begin(); it != options.end();) {
    const auto known = options_.find(it->first);
    const bool is_same = known != options_.end() && known->second == it->second;
    it = is_same ? options.erase(it) : std::next(it);
  }
  OptionMap changed = options;
  const bool renames = options.count("node-name") != 0;
  const absl::StatusOr<NodeOptions> node = take_node_options(&options);
  if (!node.ok()) return node.status();
  ReopenOptions wanted;
  wanted.read_only = changes.read_only.value_or(device_->read_only());
  absl::Status status = check_access(*node, changes, wanted.read_only);
  if (!status.ok()) return status;
  wanted.read_only = node->read_only.value_or(wanted.read_only);
  wanted.direct = node->direct;
  wanted.no_flush = node->no_flush;
  wanted.driver_options = std::move(options);
  if (renames) wanted.driver_options["node-name"] = "";
  status = device_->reopen(wanted, changes.cache_mode);
  if (!status.ok()) return status;
  changed.merge(options_);
  options_ = std::move(changed);
  ignores_discards_ = !node->discard.value_or(!ignores_discards_);
  if (node->detect_zeroes.has_value())
    device_->set_detect_zeroes(*node->detect_zeroes);
  return status;
}

uint64_t IoImage::track(Done done) {
  under_way_.emplace(next_id_, std::move(done));
  return next_id_++;
}

void IoImage::report_stopped() {
  BlkdebugDriver* const blkdebug = this->blkdebug();
  if (blkdebug == nullptr) return;
  for (const std::string& tag : blkdebug->rules().take_newly_suspended())
    std::printf("blkdebug: Suspended request '%s'\n", tag.c_str());
}

void IoImage::collect_once(absl::Duration timeout) {
  std::array<Completion, 16> finished;
  CompletionQueue& queue = device_->completion_queue();
  do {
    const size_t count =
        under_way_.empty() ? 0
                           : queue.wait(timeout > absl::ZeroDuration() ? 1 : 0,
                                        timeout, absl::MakeSpan(finished));
    report_stopped();
    if (count == 0) return;
    for (size_t i = 0; i < count; ++i) {
      auto request = under_way_.extract(finished[i].user_data);
      request.mapped()(finished[i].status);
    }
    timeout = absl::ZeroDuration();
  } while (true);
}

void IoImage::collect_until(absl::Time end) {
  while (!under_way_.empty()) {
    const absl::Duration left = end - absl::Now();
    if (left <= absl::ZeroDuration()) break;
    collect_once(left);
  }
  report_stopped();
}

bool IoImage::collect_all() {
  const BlkdebugDriver* const found = blkdebug();
  while (!under_way_.empty()) {
    collect_once(kPatience);
    if (found != nullptr && !under_way_.empty() &&
        blkdebug()->rules().suspended_count() >= under_way_.size()) {
      return false;
    }
  }
  return true;
}

absl::Status IoImage::close() {
  if (BlkdebugDriver* const found = blkdebug()) found->rules().resume_all();
  collect_all();
  return device_->close();
}

}  // namespace spindle

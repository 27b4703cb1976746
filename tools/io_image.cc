#include "tools/io_image.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/block_driver.h"
#include "engine/cache_mode.h"
#include "engine/completion_queue.h"
#include "engine/errors.h"
#include "engine/format.h"
#include "engine/image_opener.h"
#include "formats/builtin.h"
#include "threadpool/default_executor.h"
#include "tools/cli_text.h"
#include "tools/sector_status.h"

namespace spindle {
namespace {

constexpr size_t kMisalignmentBytes = 16;

absl::StatusOr<std::shared_ptr<BlockDriver>> open_driver(
    const ImageOpener& opener, const IoTarget& target) {
  OpenOptions options = tool_open_options();
  options.read_only = target.read_only;
  options.force_share = target.force_share;
  options.pass_discard_through = !target.ignore_discards;
  apply_cache_mode(target.cache_mode, &options);
  return opener.open(target.filename, target.format, options);
}

// The overlay loses its name at once; `fd` remains.
absl::StatusOr<std::shared_ptr<BlockDriver>> open_overlay(
    const ImageOpener& opener, IoTarget target, int* fd) {
  CreateOptions create;
  std::error_code error;
  create.backing_filename =
      std::filesystem::absolute(target.filename, error).string();
  create.backing_format = target.format;
  if (create.backing_format.empty()) {
    const absl::StatusOr<std::string> format = opener.probe(target.filename);
    if (!format.ok()) return format.status();
    create.backing_format = *format;
  }
  const char* folder = std::getenv("TMPDIR");
  // mkostemp() puts a name in place of the letters X.
  std::string name =
      absl::StrCat(folder == nullptr ? "/var/tmp" : folder, "/spindle.XXXXXX");
  *fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (*fd < 0) {
    return errno_status(
        errno, absl::StrCat("Could not open temporary file '", name, "'"));
  }
  absl::Status status = opener.create(name, "qcow2", create);
  target.filename = name;
  target.format = "qcow2";
  target.cache_mode = CacheMode::kUnsafe;
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      status.ok() ? open_driver(opener, target) : status;
  ::unlink(name.c_str());
  return driver;
}

}  // namespace

IoBuffer::IoBuffer(uint64_t length_bytes, bool misaligned, uint8_t fill)
    : skip_(misaligned ? kMisalignmentBytes : 0),
      bytes_(length_bytes + skip_, fill) {}

absl::StatusOr<std::unique_ptr<IoImage>> IoImage::open(const IoTarget& target) {
  absl::StatusOr<std::unique_ptr<Executor>> executor = create_executor({});
  if (!executor.ok()) return executor.status();
  ImageOpener::Policy policy;
  policy.probe_image = target.format.empty();
  if (!target.format.empty() &&
      builtin_drivers().find_format(target.format) == nullptr &&
      builtin_drivers().find_protocol(target.format) == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("Unknown driver '", target.format, "'"));
  }
  const ImageOpener opener(builtin_drivers(), policy);
  int overlay_fd = -1;
  absl::StatusOr<std::shared_ptr<BlockDriver>> driver =
      target.snapshot ? open_overlay(opener, target, &overlay_fd)
                      : open_driver(opener, target);
  BlockDeviceOptions options;
  options.cache_mode = target.snapshot ? CacheMode::kUnsafe : target.cache_mode;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device =
      driver.ok()
          ? BlockDevice::create(*std::move(driver), executor->get(), options)
          : driver.status();
  if (!device.ok()) {
    if (overlay_fd >= 0) ::close(overlay_fd);
    return device.status();
  }
  return std::unique_ptr<IoImage>(new IoImage(
      target, overlay_fd, *std::move(executor), *std::move(device)));
}

IoImage::~IoImage() {
  if (overlay_fd_ >= 0) ::close(overlay_fd_);
}

std::string IoImage::own_filename() const {
  return overlay_fd_ >= 0 ? absl::StrCat("/proc/self/fd/", overlay_fd_)
                          : device_->driver().filename();
}

IoImage::IoImage(IoTarget target, int overlay_fd,
                 std::unique_ptr<Executor> executor,
                 std::unique_ptr<BlockDevice> device)
    : target_(std::move(target)),
      overlay_fd_(overlay_fd),
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

uint64_t IoImage::track(Done done) {
  under_way_.emplace(next_id_, std::move(done));
  return next_id_++;
}

void IoImage::collect(bool all) {
  std::array<Completion, 16> finished;
  while (!under_way_.empty()) {
    CompletionQueue& queue = device_->completion_queue();
    const auto out = absl::MakeSpan(finished);
    const size_t count =
        all ? queue.wait(1, absl::InfiniteDuration(), out) : queue.reap(out);
    if (count == 0) return;
    for (size_t i = 0; i < count; ++i) {
      auto request = under_way_.extract(finished[i].user_data);
      request.mapped()(finished[i].status);
    }
  }
}

absl::Status IoImage::close() {
  wait_for_all();
  return device_->close();
}

}  // namespace spindle

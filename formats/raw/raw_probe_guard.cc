#include "formats/raw/raw_probe_guard.h"

#include <errno.h>

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/errors.h"

namespace spindle {
namespace {

// What raw itself answers to a probe.
constexpr int kLastResort = 1;

}  // namespace

RawProbeGuard::RawProbeGuard(std::shared_ptr<BlockDriver> file,
                             std::vector<const ImageFormat*> formats)
    : file_(std::move(file)), formats_(std::move(formats)) {}

absl::string_view RawProbeGuard::format_found_in(const IoVector& qiov) const {
  // Every format shows itself in the first sector, which a write covers whole
  // or not at all.
  std::array<uint8_t, kSectorSizeBytes> head;
  qiov.copy_to(0, head.data(), head.size());
  for (const ImageFormat* format : formats_) {
    if (format->probe(head, file_->filename()) > kLastResort)
      return format->name();
  }
  return {};
}

absl::Status RawProbeGuard::write(const IoVector& qiov, Sector sector) {
  if (sector == Sector(0) && !qiov.empty()) {
    const absl::string_view format = format_found_in(qiov);
    if (!format.empty()) {
      return errno_status(
          EPERM,
          absl::StrCat(
              "write to the first sector of '", filename(),
              "', which would turn it into a ", format,
              " image: its format was guessed to be raw; state format 'raw' to "
              "allow it"));
    }
  }
  return file_->write(qiov, sector);
}

uint64_t RawProbeGuard::try_write(const IoVector& qiov, Sector sector) {
  return sector == Sector(0) ? 0 : file_->try_write(qiov, sector);
}

absl::Status RawProbeGuard::read(const IoVector& qiov, Sector sector) {
  return file_->read(qiov, sector);
}
absl::Status RawProbeGuard::flush() { return file_->flush(); }
uint64_t RawProbeGuard::try_read(const IoVector& qiov, Sector sector) {
  return file_->try_read(qiov, sector);
}

std::string RawProbeGuard::filename() const { return file_->filename(); }
uint64_t RawProbeGuard::length_bytes() const { return file_->length_bytes(); }
bool RawProbeGuard::read_only() const { return file_->read_only(); }
DriverLimits RawProbeGuard::limits() const { return file_->limits(); }
Capabilities RawProbeGuard::capabilities() const {
  return file_->capabilities();
}
ImageInfo RawProbeGuard::info() const { return file_->info(); }
std::optional<StorageIdentity> RawProbeGuard::identity() const {
  return file_->identity();
}
AccessObserver* RawProbeGuard::access_observer() {
  return file_->access_observer();
}

absl::Status RawProbeGuard::discard(ByteRange range) {
  return file_->discard(range);
}
absl::Status RawProbeGuard::write_zeroes(ByteRange range,
                                         WriteZeroesFlags flags) {
  return file_->write_zeroes(range, flags);
}
absl::StatusOr<BlockStatus> RawProbeGuard::block_status(
    ByteRange range, BlockStatusScope scope) {
  return file_->block_status(range, scope);
}
absl::Status RawProbeGuard::set_length(uint64_t length_bytes,
                                       SetLengthMode mode) {
  return file_->set_length(length_bytes, mode);
}
absl::Status RawProbeGuard::resize(uint64_t length_bytes,
                                   Preallocation preallocation) {
  return file_->resize(length_bytes, preallocation);
}
absl::Status RawProbeGuard::reopen(const ReopenOptions& options) {
  return file_->reopen(options);
}
absl::Status RawProbeGuard::inactivate() { return file_->inactivate(); }
absl::Status RawProbeGuard::activate() { return file_->activate(); }
absl::Status RawProbeGuard::close() { return file_->close(); }

}  // namespace spindle

#include "formats/raw/window_driver.h"

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "engine/option_values.h"

namespace spindle {

WindowDriver::WindowDriver(std::shared_ptr<BlockDriver> file,
                           uint64_t offset_bytes,
                           std::optional<uint64_t> size_bytes)
    : FilterDriver(file),
      file_(std::move(file)),
      channel_(std::in_place, file_),
      offset_bytes_(offset_bytes),
      size_bytes_(size_bytes) {}

absl::StatusOr<std::shared_ptr<WindowDriver>> WindowDriver::create(
    std::shared_ptr<BlockDriver> file, uint64_t offset_bytes,
    std::optional<uint64_t> size_bytes) {
  // In whole sectors, as QEMU counts.
  const uint64_t file_bytes = align_up(file->length_bytes(), kSectorSizeBytes);
  if (offset_bytes > file_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("Offset (", offset_bytes,
                     ") cannot be greater than size of the containing file (",
                     file_bytes, ")"));
  }
  if (size_bytes.has_value() && *size_bytes > file_bytes - offset_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "The sum of offset (", offset_bytes, ") and size (", *size_bytes,
        ") has to be smaller or equal to the  actual size of the containing "
        "file (",
        file_bytes, ")"));
  }
  if (size_bytes.value_or(0) % kSectorSizeBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Specified size is not multiple of ", kSectorSizeBytes));
  }
  return absl::WrapUnique(
      new WindowDriver(std::move(file), offset_bytes, size_bytes));
}

uint64_t WindowDriver::length_bytes() const {
  if (size_bytes_.has_value()) return *size_bytes_;
  const uint64_t file_bytes = child().length_bytes();
  return file_bytes - std::min(offset_bytes_, file_bytes);
}

uint64_t WindowDriver::bytes_within(const IoVector& qiov, Sector sector) const {
  const uint64_t length = length_bytes();
  const uint64_t offset = std::min(sector.byte_offset(), length);
  return std::min(qiov.length_bytes(), length - offset);
}

absl::Status WindowDriver::read(const IoVector& qiov, Sector sector) {
  const uint64_t within = bytes_within(qiov, sector);
  qiov.fill(within, qiov.length_bytes() - within, 0);
  return channel_->read(Purpose::kReadAio, qiov.slice(0, within),
                        offset_bytes_ + sector.byte_offset());
}

absl::Status WindowDriver::write(const IoVector& qiov, Sector sector) {
  return channel_->write(Purpose::kWriteAio,
                         qiov.slice(0, bytes_within(qiov, sector)),
                         offset_bytes_ + sector.byte_offset());
}

absl::Status WindowDriver::flush() { return channel_->flush(); }

DriverLimits WindowDriver::limits() const { return {}; }

Capabilities WindowDriver::capabilities() const {
  const Capabilities of_file = child().capabilities();
  Capabilities capabilities = {Capability::kDiscard, Capability::kWriteZeroes,
                               Capability::kBlockStatus};
  for (const Capability both :
       {Capability::kWriteZeroesMayUnmap, Capability::kSetLength,
        Capability::kReopen, Capability::kInactivate}) {
    if (of_file.has(both)) capabilities.add(both);
  }
  return capabilities;
}

ImageInfo WindowDriver::info() const {
  ImageInfo info = child().info();
  info.format = "raw";
  info.virtual_size_bytes = length_bytes();
  return info;
}

absl::Status WindowDriver::discard(ByteRange range) {
  return channel_->discard(Purpose::kClusterFree, in_file(range));
}

absl::Status WindowDriver::write_zeroes(ByteRange range,
                                        WriteZeroesFlags flags) {
  return channel_->write_zeroes(Purpose::kPwritevZero, in_file(range), flags);
}

absl::StatusOr<BlockStatus> WindowDriver::block_status(ByteRange range,
                                                       BlockStatusScope) {
  absl::StatusOr<BlockStatus> status = channel_->block_status(in_file(range));
  if (status.ok())
    status->end_of_image = range.offset + status->length >= length_bytes();
  return status;
}

absl::Status WindowDriver::check_resizable(uint64_t length_bytes) const {
  if (size_bytes_.has_value())
    return absl::UnimplementedError("Cannot resize fixed-size raw disks");
  if (checked_add(length_bytes, offset_bytes_).has_value())
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("Disk size too large for the chosen offset: ", length_bytes,
                   " bytes from ", offset_bytes_, " on"));
}

absl::Status WindowDriver::set_length(uint64_t length_bytes,
                                      SetLengthMode mode) {
  const absl::Status status = check_resizable(length_bytes);
  return status.ok() ? child().set_length(length_bytes + offset_bytes_, mode)
                     : status;
}

absl::Status WindowDriver::resize(uint64_t length_bytes,
                                  Preallocation preallocation) {
  const absl::Status status = check_resizable(length_bytes);
  return status.ok()
             ? child().resize(length_bytes + offset_bytes_, preallocation)
             : status;
}

absl::Status WindowDriver::reopen(const ReopenOptions& options) {
  absl::Status status = FilterDriver::reopen(options);
  if (status.ok() && options.direct.has_value()) channel_.emplace(file_);
  return status;
}

absl::StatusOr<std::shared_ptr<BlockDriver>> apply_window(
    std::shared_ptr<BlockDriver> file, OptionMap* options) {
  std::optional<uint64_t> values[2];
  const char* const names[2] = {"offset", "size"};
  for (int i = 0; i < 2; ++i) {
    const auto node = options->extract(names[i]);
    if (node.empty()) continue;
    const absl::StatusOr<uint64_t> value =
        parse_size_option(names[i], node.mapped());
    if (!value.ok()) return value.status();
    values[i] = *value;
  }
  if (!values[0].has_value() && !values[1].has_value()) return file;
  return WindowDriver::create(std::move(file), values[0].value_or(0),
                              values[1]);
}

}  // namespace spindle

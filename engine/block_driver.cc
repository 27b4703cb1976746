#include "engine/block_driver.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

absl::Status unimplemented(const BlockDriver& driver,
                           absl::string_view operation) {
  const std::string filename = driver.filename();
  return absl::UnimplementedError(absl::StrCat(
      operation, " is not supported by format '", driver.format_name(), "'",
      filename.empty() ? "" : absl::StrCat(" (file '", filename, "')")));
}

}  // namespace

uint64_t BlockDriver::try_read(const IoVector&, Sector) { return 0; }

uint64_t BlockDriver::try_write(const IoVector&, Sector) { return 0; }

ImageInfo BlockDriver::info() const {
  ImageInfo info;
  info.format = std::string(format_name());
  info.filename = filename();
  info.virtual_size_bytes = length_bytes();
  return info;
}

absl::Status BlockDriver::discard(ByteRange) {
  return unimplemented(*this, "discard");
}

absl::Status BlockDriver::write_zeroes(ByteRange, WriteZeroesFlags) {
  return unimplemented(*this, "write zeroes");
}

absl::StatusOr<BlockStatus> BlockDriver::block_status(ByteRange,
                                                      BlockStatusScope) {
  return unimplemented(*this, "block status");
}

absl::Status BlockDriver::write_compressed(const IoVector&, Sector) {
  return unimplemented(*this, "compressed write");
}

absl::StatusOr<CheckResult> BlockDriver::check(const CheckOptions&) {
  return unimplemented(*this, "check");
}

absl::Status BlockDriver::amend(const AmendOptions&) {
  return unimplemented(*this, "amendment of options");
}

absl::Status BlockDriver::change_backing_file(absl::string_view,
                                              absl::string_view) {
  return unimplemented(*this, "change of the backing file");
}

absl::Status BlockDriver::make_empty() {
  return unimplemented(*this, "making empty");
}

absl::StatusOr<std::vector<SnapshotInfo>> BlockDriver::list_snapshots() {
  return unimplemented(*this, "list of snapshots");
}

absl::StatusOr<SnapshotInfo> BlockDriver::create_snapshot(const SnapshotInfo&) {
  return unimplemented(*this, "creation of a snapshot");
}

absl::Status BlockDriver::apply_snapshot(absl::string_view) {
  return unimplemented(*this, "return to a snapshot");
}

absl::Status BlockDriver::delete_snapshot(absl::string_view) {
  return unimplemented(*this, "deletion of a snapshot");
}

absl::StatusOr<std::vector<DirtyBitmapInfo>> BlockDriver::list_bitmaps() {
  return unimplemented(*this, "list of bitmaps");
}

absl::StatusOr<std::shared_ptr<const DirtyBitmap>> BlockDriver::find_bitmap(
    absl::string_view) {
  return unimplemented(*this, "dirty bitmap");
}

absl::Status BlockDriver::add_bitmap(const NewDirtyBitmap&) {
  return unimplemented(*this, "creation of a bitmap");
}

absl::Status BlockDriver::remove_bitmap(absl::string_view) {
  return unimplemented(*this, "removal of a bitmap");
}

absl::Status BlockDriver::clear_bitmap(absl::string_view) {
  return unimplemented(*this, "clearing of a bitmap");
}

absl::Status BlockDriver::enable_bitmap(absl::string_view, bool) {
  return unimplemented(*this, "enabling of a bitmap");
}

absl::Status BlockDriver::merge_bitmap(absl::string_view, const DirtyBitmap&) {
  return unimplemented(*this, "merging into a bitmap");
}

absl::Status BlockDriver::set_length(uint64_t, SetLengthMode) {
  return unimplemented(*this, "change of length");
}

absl::Status BlockDriver::resize(uint64_t length_bytes,
                                 Preallocation preallocation) {
  if (preallocation == Preallocation::kOff)
    return set_length(length_bytes, SetLengthMode::kExact);
  return unimplemented(*this, "preallocation");
}

absl::Status BlockDriver::read_vmstate(const IoVector&, uint64_t) {
  return unimplemented(*this, "vmstate");
}

absl::Status BlockDriver::write_vmstate(const IoVector&, uint64_t) {
  return unimplemented(*this, "vmstate");
}

ReopenOptions ReopenOptions::take_below(
    absl::Span<const absl::string_view> names) {
  ReopenOptions below = *this;
  below.driver_options.clear();
  for (const absl::string_view name : names) {
    const std::string prefix = absl::StrCat(name, ".");
    for (auto it = driver_options.lower_bound(prefix);
         it != driver_options.end() && absl::StartsWith(it->first, prefix);) {
      below.driver_options[it->first.substr(prefix.size())] = it->second;
      it = driver_options.erase(it);
    }
  }
  return below;
}

absl::Status ReopenOptions::refuse_options() const {
  if (driver_options.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "Cannot change the option '", driver_options.begin()->first, "'"));
}

absl::Status BlockDriver::reopen(const ReopenOptions&) {
  return unimplemented(*this, "reopen");
}

absl::Status BlockDriver::inactivate() {
  return unimplemented(*this, "inactivate");
}

absl::Status BlockDriver::activate() {
  return unimplemented(*this, "activate");
}

}  // namespace spindle

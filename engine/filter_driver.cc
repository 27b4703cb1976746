#include "engine/filter_driver.h"

#include <utility>

#include "absl/base/macros.h"

namespace spindle {

FilterDriver::FilterDriver(std::shared_ptr<BlockDriver> child)
    : child_(std::move(child)) {
  ABSL_ASSERT(child_ != nullptr);
}

FilterDriver::~FilterDriver() = default;

// ---- The data path ----------------------------------------------------------

absl::Status FilterDriver::read(const IoVector& qiov, Sector sector) {
  return child_->read(qiov, sector);
}
absl::Status FilterDriver::write(const IoVector& qiov, Sector sector) {
  return child_->write(qiov, sector);
}
absl::Status FilterDriver::flush() { return child_->flush(); }
uint64_t FilterDriver::try_read(const IoVector& qiov, Sector sector) {
  return child_->try_read(qiov, sector);
}
uint64_t FilterDriver::try_write(const IoVector& qiov, Sector sector) {
  return child_->try_write(qiov, sector);
}

// ---- What it is -------------------------------------------------------------

absl::string_view FilterDriver::format_name() const {
  return child_->format_name();
}
std::string FilterDriver::filename() const { return child_->filename(); }
uint64_t FilterDriver::length_bytes() const { return child_->length_bytes(); }
bool FilterDriver::read_only() const { return child_->read_only(); }
DriverLimits FilterDriver::limits() const { return child_->limits(); }
Capabilities FilterDriver::capabilities() const {
  return child_->capabilities();
}
ImageInfo FilterDriver::info() const {
  ImageInfo info = child_->info();
  info.format = std::string(format_name());
  return info;
}
std::optional<StorageIdentity> FilterDriver::identity() const {
  return child_->identity();
}
std::shared_ptr<BlockDriver> FilterDriver::backing() const {
  return child_->backing();
}
std::shared_ptr<BlockDriver> FilterDriver::data_file() const {
  return child_->data_file();
}
AccessObserver* FilterDriver::access_observer() {
  return child_->access_observer();
}

// ---- Optional operations ----------------------------------------------------

absl::Status FilterDriver::discard(ByteRange range) {
  return child_->discard(range);
}
absl::Status FilterDriver::write_zeroes(ByteRange range,
                                        WriteZeroesFlags flags) {
  return child_->write_zeroes(range, flags);
}
absl::StatusOr<BlockStatus> FilterDriver::block_status(ByteRange range,
                                                       BlockStatusScope scope) {
  return child_->block_status(range, scope);
}
absl::Status FilterDriver::write_compressed(const IoVector& qiov,
                                            Sector sector) {
  return child_->write_compressed(qiov, sector);
}
absl::Status FilterDriver::set_length(uint64_t length_bytes,
                                      SetLengthMode mode) {
  return child_->set_length(length_bytes, mode);
}
absl::Status FilterDriver::resize(uint64_t length_bytes,
                                  Preallocation preallocation) {
  return child_->resize(length_bytes, preallocation);
}
absl::StatusOr<CheckResult> FilterDriver::check(const CheckOptions& options) {
  return child_->check(options);
}

absl::StatusOr<std::vector<SnapshotInfo>> FilterDriver::list_snapshots() {
  return child_->list_snapshots();
}
absl::StatusOr<SnapshotInfo> FilterDriver::create_snapshot(
    const SnapshotInfo& wanted) {
  return child_->create_snapshot(wanted);
}
absl::Status FilterDriver::apply_snapshot(absl::string_view snapshot) {
  return child_->apply_snapshot(snapshot);
}
absl::Status FilterDriver::delete_snapshot(absl::string_view snapshot) {
  return child_->delete_snapshot(snapshot);
}
absl::Status FilterDriver::read_vmstate(const IoVector& qiov,
                                        uint64_t position_bytes) {
  return child_->read_vmstate(qiov, position_bytes);
}
absl::Status FilterDriver::write_vmstate(const IoVector& qiov,
                                         uint64_t position_bytes) {
  return child_->write_vmstate(qiov, position_bytes);
}
absl::Status FilterDriver::amend(const AmendOptions& options) {
  return child_->amend(options);
}

absl::Status FilterDriver::change_backing_file(absl::string_view filename,
                                               absl::string_view format) {
  return child_->change_backing_file(filename, format);
}
absl::Status FilterDriver::make_empty() { return child_->make_empty(); }

absl::StatusOr<std::vector<DirtyBitmapInfo>> FilterDriver::list_bitmaps() {
  return child_->list_bitmaps();
}
absl::StatusOr<std::shared_ptr<const DirtyBitmap>> FilterDriver::find_bitmap(
    absl::string_view name) {
  return child_->find_bitmap(name);
}
absl::Status FilterDriver::add_bitmap(const NewDirtyBitmap& wanted) {
  return child_->add_bitmap(wanted);
}
absl::Status FilterDriver::remove_bitmap(absl::string_view name) {
  return child_->remove_bitmap(name);
}
absl::Status FilterDriver::clear_bitmap(absl::string_view name) {
  return child_->clear_bitmap(name);
}
absl::Status FilterDriver::enable_bitmap(absl::string_view name, bool enabled) {
  return child_->enable_bitmap(name, enabled);
}
absl::Status FilterDriver::merge_bitmap(absl::string_view name,
                                        const DirtyBitmap& source) {
  return child_->merge_bitmap(name, source);
}

absl::Status FilterDriver::reopen(const ReopenOptions& options) {
  // Filters that nobody asked for by name (raw's guard) have no prefix.
  ReopenOptions own = options;
  ReopenOptions below = own.take_below({"file", "image"});
  below.driver_options.merge(own.driver_options);
  return child_->reopen(below);
}
absl::Status FilterDriver::inactivate() { return child_->inactivate(); }
absl::Status FilterDriver::activate() { return child_->activate(); }
absl::Status FilterDriver::close() { return child_->close(); }

}  // namespace spindle

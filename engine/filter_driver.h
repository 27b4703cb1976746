// FilterDriver: passes everything through to the driver below it.
//
// A filter derives from it and overrides what it changes; all else is true of
// the driver below, and so of the filter.  A filter that changes what reads or
// writes do must also say so in capabilities(): try_read() and try_write() go
// past read() and write() otherwise.
//
// Shares ownership of the driver below; close() closes that too.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_ENGINE_FILTER_DRIVER_H_
#define SPINDLE_ENGINE_FILTER_DRIVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/block_driver.h"

namespace spindle {

class FilterDriver : public BlockDriver {
 public:
  // REQUIRES: child != nullptr.
  explicit FilterDriver(std::shared_ptr<BlockDriver> child);
  ~FilterDriver() override;

  BlockDriver& child() const { return *child_; }

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override;
  std::string filename() const override;
  uint64_t length_bytes() const override;
  bool read_only() const override;
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  // The child's, under this driver's format_name().
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override;
  BlockDriver* below() const override { return child_.get(); }
  std::shared_ptr<BlockDriver> backing() const override;
  std::shared_ptr<BlockDriver> data_file() const override;
  AccessObserver* access_observer() override;

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override;

  absl::StatusOr<std::vector<SnapshotInfo>> list_snapshots() override;
  absl::StatusOr<SnapshotInfo> create_snapshot(
      const SnapshotInfo& wanted) override;
  absl::Status apply_snapshot(absl::string_view snapshot) override;
  absl::Status delete_snapshot(absl::string_view snapshot) override;
  absl::Status read_vmstate(const IoVector& qiov,
                            uint64_t position_bytes) override;
  absl::Status write_vmstate(const IoVector& qiov,
                             uint64_t position_bytes) override;
  absl::Status amend(const AmendOptions& options) override;

  absl::Status change_backing_file(absl::string_view filename,
                                   absl::string_view format) override;
  absl::Status make_empty() override;

  absl::StatusOr<std::vector<DirtyBitmapInfo>> list_bitmaps() override;
  absl::StatusOr<std::shared_ptr<const DirtyBitmap>> find_bitmap(
      absl::string_view name) override;
  absl::Status add_bitmap(const NewDirtyBitmap& wanted) override;
  absl::Status remove_bitmap(absl::string_view name) override;
  absl::Status clear_bitmap(absl::string_view name) override;
  absl::Status enable_bitmap(absl::string_view name, bool enabled) override;
  absl::Status merge_bitmap(absl::string_view name,
                            const DirtyBitmap& source) override;

  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override;
  absl::Status activate() override;
  absl::Status close() override;

 private:
  const std::shared_ptr<BlockDriver> child_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_FILTER_DRIVER_H_

// Qcow2Driver: one open image behind the driver contract.
//
// Thin: a call enters the gate and becomes one of a part's.  Its sources:
// qcow2_driver.cc (opening, the data path, what it is), driver_operations.cc
// (check, snapshots, length, vmstate, bitmaps, amend), driver_life.cc (reopen,
// inactivate, activate, close).  Private to them.
//
// Thread safety: as every driver.
#ifndef SPINDLE_FORMATS_QCOW2_DRIVER_IMPL_H_
#define SPINDLE_FORMATS_QCOW2_DRIVER_IMPL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/block_driver.h"
#include "engine/checked_math.h"
#include "engine/dirty_bitmap.h"
#include "engine/format.h"
#include "engine/gate.h"
#include "formats/cluster/image_files.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/compressed_writer.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/encryption.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/mapping_changer.h"
#include "formats/qcow2/resize.h"
#include "formats/qcow2/snapshots.h"
#include "formats/qcow2/status_reader.h"
#include "formats/qcow2/table_references.h"
#include "formats/qcow2/vmstate.h"

namespace spindle::qcow2 {

class Qcow2Driver final : public BlockDriver {
 public:
  // `encryption` is null where there is none.
  Qcow2Driver(ImageFiles files, std::unique_ptr<Encryption> encryption,
              OpenOptions options, LogSink log)
      : files_(std::move(files)),
        encryption_(std::move(encryption)),
        file_(files_.file),
        backing_(files_.backing),
        options_(std::move(options)),
        log_(std::move(log)),
        read_only_(options_.read_only) {}

  // Reads the image's metadata; once, or again after inactivate().  On error
  // nothing has changed.
  absl::Status load(const Header& header);
  // The same, but for header_, which may be read by then.
  absl::Status load_parts(const Header& header);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  uint64_t try_read(const IoVector& qiov, Sector sector) override;
  uint64_t try_write(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override { return "qcow2"; }
  std::string filename() const override { return file_->filename(); }
  uint64_t length_bytes() const override {
    return length_bytes_.load(std::memory_order_relaxed);
  }
  bool read_only() const override {
    return read_only_.load(std::memory_order_acquire);
  }
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override {
    return file_->identity();
  }
  BlockDriver* below() const override { return file_.get(); }
  std::shared_ptr<BlockDriver> backing() const override { return backing_; }
  std::shared_ptr<BlockDriver> data_file() const override {
    return files_.data_file;
  }

  absl::Status discard(ByteRange range) override;
  absl::Status write_zeroes(ByteRange range, WriteZeroesFlags flags) override;
  absl::StatusOr<BlockStatus> block_status(ByteRange range,
                                           BlockStatusScope scope) override;
  absl::StatusOr<CheckResult> check(const CheckOptions& options) override;
  absl::StatusOr<std::vector<SnapshotInfo>> list_snapshots() override;
  absl::StatusOr<SnapshotInfo> create_snapshot(
      const SnapshotInfo& wanted) override;
  absl::Status apply_snapshot(absl::string_view snapshot) override;
  absl::Status delete_snapshot(absl::string_view snapshot) override;
  absl::StatusOr<std::vector<DirtyBitmapInfo>> list_bitmaps() override;
  absl::StatusOr<std::shared_ptr<const DirtyBitmap>> find_bitmap(
      absl::string_view name) override;
  absl::Status add_bitmap(const NewDirtyBitmap& wanted) override;
  absl::Status remove_bitmap(absl::string_view name) override;
  absl::Status clear_bitmap(absl::string_view name) override;
  absl::Status enable_bitmap(absl::string_view name, bool enabled) override;
  absl::Status merge_bitmap(absl::string_view name,
                            const DirtyBitmap& source) override;
  absl::Status amend(const AmendOptions& options) override;
  absl::Status change_backing_file(absl::string_view filename,
                                   absl::string_view format) override;
  absl::Status make_empty() override;
  absl::Status write_compressed(const IoVector& qiov, Sector sector) override;
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  absl::Status read_vmstate(const IoVector& qiov,
                            uint64_t position_bytes) override;
  absl::Status write_vmstate(const IoVector& qiov,
                             uint64_t position_bytes) override;
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override;
  absl::Status activate() override;
  absl::Status close() override;

 private:
  // An open image and those who work on it.
  struct Parts {
    Parts(std::unique_ptr<Image> opened, LiveBitmaps* live_bitmaps,
          const LogSink& log)
        : image(std::move(opened)),
          reader(image.get()),
          writer(image.get(), &reader),
          compressed_writer(image.get(), &writer),
          changer(image.get()),
          references(image.get()),
          snapshots(image.get(), &references),
          vmstate(image.get(), &reader, &writer),
          resizer({image.get(), &reader, &writer, &changer, &references}, log),
          bitmaps(image.get(), live_bitmaps),
          status_reader(image.get()) {}
    // Before the first write; again is fine.
    absl::Status prepare_for_writing() {
      absl::Status status = snapshots.prepare_for_writing();
      if (status.ok()) status = bitmaps.prepare_for_writing();
      if (status.ok()) status = image->prepare_for_writing();
      if (status.ok()) status = snapshots.enter_extents();
      if (status.ok()) status = bitmaps.enter_extents();
      return status.ok() ? bitmaps.mark_in_use() : status;
    }
    // Nobody writes from here on: everything is in the file, and right.
    absl::Status finish_writing() {
      absl::Status status = image->rounds().settle();
      return status.ok() ? bitmaps.store() : status;
    }
    const std::unique_ptr<Image> image;
    DataReader reader;
    DataWriter writer;
    CompressedWriter compressed_writer;
    MappingChanger changer;
    TableReferences references;
    Snapshots snapshots;
    VmState vmstate;
    Resizer resizer;
    Bitmaps bitmaps;
    StatusReader status_reader;
  };

  // The part of a transfer that lies within the image: the last sector may not.
  uint64_t bytes_within(const IoVector& qiov, Sector sector) const {
    return std::min(qiov.length_bytes(), length_bytes() - sector.byte_offset());
  }
  // False if the image has become shorter since the caller looked.
  bool is_within(ByteRange range) const {
    return range.end() <= align_up(length_bytes(), kSectorSizeBytes);
  }
  bool is_within(const IoVector& qiov, Sector sector) const {
    return is_within({sector.byte_offset(), qiov.length_bytes()});
  }
  absl::Status finish_change(absl::Status status);
  // check() that changes what it finds.
  absl::StatusOr<CheckResult> repair(const CheckOptions& options);
  // resize(), with the gate closed.
  absl::Status change_length(uint64_t length_bytes,
                             Preallocation preallocation);
  // The disk may have another length now: tells whoever keeps it.
  void note_length();
  // OK if an operation that has the image to itself may change it.
  absl::Status may_change() const;
  absl::Status may_change_snapshots() const;

  // Opens the image anew after its header has changed.
  absl::Status load_amended();
  // amend(), once the keys are derived.
  absl::Status amend_closed(const AmendOptions& options,
                            absl::FunctionRef<absl::Status()> change_key_slots);
  // What the image's files and keys were opened by is in `header`, too.
  absl::Status check_same(const Header& header) const;

  // REQUIRES: parts_ != nullptr.
  void log_what_is_lost(const absl::Status& why) const;

  // What activate() does once it has the locks.
  absl::Status load_again();
  // What reopen() does about all but read_only, and about that.  On error it is
  // as it was.
  absl::Status change_options(ReopenOptions options);
  absl::Status change_access(bool to_read_only);
  // Reads the image anew with `options`, after its files were reopened.
  absl::Status load_with(const OpenOptions& options,
                         const ImageFiles::Reopening& files);
  ImageFiles::Reopening current_access() const;

  const ImageFiles files_;
  const std::unique_ptr<Encryption> encryption_;
  const std::shared_ptr<BlockDriver> file_;
  const std::shared_ptr<BlockDriver> backing_;
  OpenOptions options_;  // changes inside the closed gate
  const LogSink log_;
  std::atomic<bool> read_only_;

  // Requests pass it; reopen, inactivate and activate close it.
  mutable Gate gate_;
  // Null while the image is inactive.  Used inside the gate, changed while it
  // is closed.
  std::unique_ptr<Parts> parts_;
  // Follows writes inside the gate.
  LiveBitmaps live_bitmaps_;
  // As it was when the image was opened or activated.  Replaced only by
  // activate(), when no other call is allowed; a repair or a resize, inside the
  // closed gate, changes what only info() reads.
  Header header_;
  // Of the disk; changes inside the closed gate.
  std::atomic<uint64_t> length_bytes_{0};
};

// While somebody else may be using the image.
absl::Status inactive_error();

absl::StatusOr<Header> read_header_of(BlockDriver* file, bool read_only);
// The header of what shall be shown: the disk, or a snapshot.
absl::StatusOr<Header> read_shown_header(BlockDriver* file,
                                         const OpenOptions& options,
                                         bool read_only);
// An image that is marked dirty has refcounts that are out of date: puts them
// right before anything is written, and reads the header anew.  As in QEMU,
// corruptions that no repair mends do not matter here; an image that could not
// be checked to its end stays closed.
absl::Status repair_if_dirty(BlockDriver* file, const LogSink& log,
                             Header* header);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_DRIVER_IMPL_H_

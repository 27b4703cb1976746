#include "formats/qcow2/qcow2_driver.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/checked_math.h"
#include "engine/dirty_bitmap.h"
#include "engine/errors.h"
#include "engine/gate.h"
#include "formats/qcow2/amend.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/check_driver.h"
#include "formats/qcow2/compressed_writer.h"
#include "formats/qcow2/data_reader.h"
#include "formats/qcow2/data_writer.h"
#include "formats/qcow2/header.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/image.h"
#include "formats/qcow2/image_files.h"
#include "formats/qcow2/mapping_changer.h"
#include "formats/qcow2/resize.h"
#include "formats/qcow2/runtime_options.h"
#include "formats/qcow2/snapshot_view.h"
#include "formats/qcow2/snapshots.h"
#include "formats/qcow2/status_reader.h"
#include "formats/qcow2/table_references.h"
#include "formats/qcow2/vmstate.h"

namespace spindle::qcow2 {
namespace {

using Recording = DirtyRecorder::Recording;

class Qcow2Driver final : public BlockDriver {
 public:
  Qcow2Driver(ImageFiles files, OpenOptions options, LogSink log)
      : files_(std::move(files)),
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

  // What activate() does once it has the locks.
  absl::Status load_again();

  const ImageFiles files_;
  const std::shared_ptr<BlockDriver> file_;
  const std::shared_ptr<BlockDriver> backing_;
  const OpenOptions options_;
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

absl::Status inactive_error() {
  return absl::FailedPreconditionError(
      "the image is inactive: somebody else may be using it");
}

absl::Status cut_off_error() {
  return absl::OutOfRangeError(
      "the image has become shorter: the request reaches beyond its end");
}

absl::Status Qcow2Driver::load_parts(const Header& header) {
  absl::StatusOr<RuntimeOptions> runtime =
      parse_runtime_options(options_, header);
  if (!runtime.ok()) return runtime.status();
  absl::StatusOr<std::unique_ptr<Image>> image =
      Image::open(file_, backing_, header, *runtime, log_, files_.data_file);
  if (!image.ok()) return image.status();
  auto parts = std::make_unique<Parts>(*std::move(image), &live_bitmaps_, log_);
  if (!read_only()) {
    absl::Status status = parts->prepare_for_writing();
    if (!status.ok()) return status;
  }
  parts_ = std::move(parts);
  return absl::OkStatus();
}

absl::Status Qcow2Driver::load(const Header& header) {
  absl::Status status = load_parts(header);
  if (!status.ok()) return status;
  header_ = header;
  length_bytes_.store(header.size_bytes, std::memory_order_relaxed);
  return status;
}

// ---- The data path ---------------------------------------------------------

absl::Status Qcow2Driver::read(const IoVector& qiov, Sector sector) {
  const Gate::Passage inside(&gate_);
  if (ABSL_PREDICT_FALSE(parts_ == nullptr)) return inactive_error();
  if (ABSL_PREDICT_FALSE(!is_within(qiov, sector))) return cut_off_error();
  const uint64_t within = bytes_within(qiov, sector);
  const GuestOffset guest{sector.byte_offset()};
  if (within == qiov.length_bytes()) return parts_->reader.read(guest, qiov);
  qiov.fill(within, qiov.length_bytes() - within, 0);
  return parts_->reader.read(guest, qiov.slice(0, within));
}

uint64_t Qcow2Driver::try_read(const IoVector& qiov, Sector sector) {
  const Gate::TryPassage inside(&gate_);
  if (!inside.entered() || parts_ == nullptr || !is_within(qiov, sector) ||
      bytes_within(qiov, sector) != qiov.length_bytes()) {
    return 0;
  }
  return parts_->reader.try_read({sector.byte_offset()}, qiov);
}

absl::Status Qcow2Driver::write(const IoVector& qiov, Sector sector) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (ABSL_PREDICT_FALSE(parts_ == nullptr)) return inactive_error();
    if (ABSL_PREDICT_FALSE(!is_within(qiov, sector))) return cut_off_error();
    const uint64_t within = bytes_within(qiov, sector);
    const GuestOffset guest{sector.byte_offset()};
    const Recording recording(live_bitmaps_.recorder(), {guest.bytes, within});
    status = within == qiov.length_bytes()
                 ? parts_->writer.write(guest, qiov)
                 : parts_->writer.write(guest, qiov.slice(0, within));
  }
  return finish_change(std::move(status));
}

uint64_t Qcow2Driver::try_write(const IoVector& qiov, Sector sector) {
  const Gate::TryPassage inside(&gate_);
  if (!inside.entered() || parts_ == nullptr || !is_within(qiov, sector) ||
      bytes_within(qiov, sector) != qiov.length_bytes()) {
    return 0;
  }
  const Recording recording(live_bitmaps_.recorder(),
                            {sector.byte_offset(), qiov.length_bytes()});
  return parts_->writer.try_write({sector.byte_offset()}, qiov);
}

absl::Status Qcow2Driver::flush() {
  const Gate::Passage inside(&gate_);
  if (read_only()) return absl::OkStatus();
  // inactivate() has made everything durable.
  return parts_ == nullptr ? absl::OkStatus() : parts_->image->rounds().flush();
}

// After the change itself: whoever changed tables writes some back if they
// crowd.  Passes the gate anew, so that a closer waits for less.
absl::Status Qcow2Driver::finish_change(absl::Status status) {
  if (!status.ok()) return status;
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return status;  // nothing is left to be written
  // A failure stays with the dirty slices, and comes back from the flush that
  // must report it.
  parts_->image->rounds().write_back_if_crowded().IgnoreError();
  return status;
}

absl::Status Qcow2Driver::discard(ByteRange range) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (parts_ == nullptr) return inactive_error();
    if (!is_within(range)) return cut_off_error();
    const Recording recording(live_bitmaps_.recorder(), range);
    status = parts_->changer.discard(range);
  }
  return finish_change(std::move(status));
}

absl::Status Qcow2Driver::write_zeroes(ByteRange range,
                                       WriteZeroesFlags flags) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (parts_ == nullptr) return inactive_error();
    if (!is_within(range)) return cut_off_error();
    const Recording recording(live_bitmaps_.recorder(), range);
    status = parts_->changer.write_zeroes(range, flags);
  }
  return finish_change(std::move(status));
}

absl::Status Qcow2Driver::write_compressed(const IoVector& qiov,
                                           Sector sector) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (parts_ == nullptr) return inactive_error();
    if (!is_within(qiov, sector)) return cut_off_error();
    if (files_.data_file != nullptr) {
      return absl::UnimplementedError(
          "an external data file has no compressed clusters");
    }
    const uint64_t within = bytes_within(qiov, sector);
    const Recording recording(live_bitmaps_.recorder(),
                              {sector.byte_offset(), within});
    status = parts_->compressed_writer.write({sector.byte_offset()},
                                             qiov.slice(0, within));
  }
  return finish_change(std::move(status));
}

// ---- What it is ------------------------------------------------------------

DriverLimits Qcow2Driver::limits() const {
  const Gate::Passage inside(&gate_);  // a repair changes the features
  DriverLimits limits;
  const auto cluster = static_cast<uint32_t>(header_.cluster_size_bytes());
  limits.optimal_transfer_bytes = cluster;
  limits.discard_alignment_bytes = cluster;
  limits.write_zeroes_alignment_bytes =
      header_.extended_l2() ? cluster / kSubclustersPerCluster : cluster;
  return limits;
}

Capabilities Qcow2Driver::capabilities() const {
  const Gate::Passage inside(&gate_);  // an amendment changes the version
  Capabilities list{Capability::kBlockStatus, Capability::kCheck,
                    Capability::kVmState, Capability::kSnapshots,
                    Capability::kBitmaps};
  // They follow the disk.
  if (options_.snapshot.has_value()) list.remove(Capability::kBitmaps);
  // What the files must be able to do as well.
  for (Capability c :
       {Capability::kReopen, Capability::kInactivate, Capability::kTryRead}) {
    if (files_.can(c)) list.add(c);
  }
  if (read_only()) return list;
  list.add(Capability::kDiscard);
  list.add(Capability::kAmend);
  if (files_.data_file == nullptr) {
    list.add(Capability::kSetLength);
    list.add(Capability::kWriteCompressed);
  }
  if (files_.can(Capability::kTryWrite)) list.add(Capability::kTryWrite);
  if (header_.version >= kVersion3 || backing_ == nullptr) {
    list.add(Capability::kWriteZeroes);
    list.add(Capability::kWriteZeroesMayUnmap);
    list.add(Capability::kWriteZeroesNoFallback);
  }
  return list;
}

ImageInfo Qcow2Driver::info() const {
  const Gate::Passage inside(&gate_);
  const Header& header = header_;
  ImageInfo info;
  info.format = "qcow2";
  info.filename = file_->filename();
  info.virtual_size_bytes = header.size_bytes;
  info.actual_size_bytes = file_->info().actual_size_bytes;
  info.cluster_size_bytes = header.cluster_size_bytes();
  info.dirty = header.is_dirty();
  info.corrupt = header.is_corrupt() ||
                 (parts_ != nullptr && parts_->image->corruption().is_set());
  info.backing_filename = header.backing_filename;
  info.backing_format = header.backing_format;
  info.format_specific = {
      {"compat", header.version >= kVersion3 ? "1.1" : "0.10"},
      {"compression type",
       header.compression_type == kCompressionZstd ? "zstd" : "zlib"}};
  if (header.version >= kVersion3) {
    info.format_specific.emplace_back(
        "lazy refcounts", header.lazy_refcounts() ? "true" : "false");
    info.format_specific.emplace_back("refcount bits",
                                      absl::StrCat(header.refcount_bits()));
    if (header.has_data_file()) {
      info.format_specific.emplace_back("data file", header.data_filename());
      info.format_specific.emplace_back(
          "data file raw", header.data_file_is_raw() ? "true" : "false");
    }
    info.format_specific.emplace_back("corrupt",
                                      info.corrupt ? "true" : "false");
    info.format_specific.emplace_back("extended l2",
                                      header.extended_l2() ? "true" : "false");
  }
  return info;
}

absl::StatusOr<BlockStatus> Qcow2Driver::block_status(ByteRange range,
                                                      BlockStatusScope scope) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  if (!is_within(range)) return cut_off_error();
  return parts_->status_reader.status(range, scope);
}

absl::StatusOr<Header> read_header_of(BlockDriver* file) {
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  return read_header(&channel);
}

// The header of what shall be shown: the disk, or a snapshot.
absl::StatusOr<Header> read_shown_header(BlockDriver* file,
                                         const OpenOptions& options) {
  absl::StatusOr<Header> header = read_header_of(file);
  if (!header.ok() || !options.snapshot.has_value()) return header;
  if (!options.read_only) {
    return absl::InvalidArgumentError(
        "a snapshot can be opened for reading only");
  }
  absl::Status status = show_snapshot(file, *options.snapshot, &*header);
  if (!status.ok()) return status;
  return header;
}

// ---- Check ------------------------------------------------------------------

absl::StatusOr<CheckResult> Qcow2Driver::check(const CheckOptions& options) {
  if (!options.fix_leaks && !options.fix_errors) {
    const Gate::Passage inside(&gate_);
    if (parts_ == nullptr) return inactive_error();
    // What is cached must be in the file.
    absl::Status status =
        read_only() ? absl::OkStatus() : parts_->image->rounds().settle();
    if (!status.ok()) return status;
    return check_file(&parts_->image->file(), options);
  }
  // Closed for all of a repair: it changes what the caches have.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return inactive_error();
  absl::Status status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  absl::StatusOr<CheckResult> result =
      check_file(&parts_->image->file(), options);
  // The caches knew the image as it was.
  parts_.reset();
  const absl::StatusOr<Header> header = read_header_of(file_.get());
  status = header.ok() ? load_parts(*header) : header.status();
  if (!status.ok()) return result.ok() ? status : result.status();
  // What a repair changes; requests that wait at the gate read other members.
  header_.refcount_table_offset = header->refcount_table_offset;
  header_.refcount_table_clusters = header->refcount_table_clusters;
  header_.incompatible_features = header->incompatible_features;
  return result;
}

// ---- Snapshots -------------------------------------------------------------

absl::Status Qcow2Driver::may_change() const {
  if (parts_ == nullptr) return inactive_error();
  if (read_only()) return absl::PermissionDeniedError("the image is read-only");
  return absl::OkStatus();
}

// Data in a file of their own are nowhere but at one place, and not counted.
absl::Status Qcow2Driver::may_change_snapshots() const {
  if (files_.data_file == nullptr) return may_change();
  return absl::UnimplementedError(
      "an image with an external data file has no internal snapshots");
}

absl::StatusOr<std::vector<SnapshotInfo>> Qcow2Driver::list_snapshots() {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->snapshots.list();
}

absl::StatusOr<SnapshotInfo> Qcow2Driver::create_snapshot(
    const SnapshotInfo& wanted) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  return parts_->snapshots.create(wanted);
}

absl::Status Qcow2Driver::apply_snapshot(absl::string_view snapshot) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  // They would miss what changes.
  if (!parts_->bitmaps.empty())
    return absl::FailedPreconditionError("Device has active dirty bitmaps");
  absl::Status status = parts_->snapshots.apply(snapshot);
  note_length();
  return status;
}

absl::Status Qcow2Driver::delete_snapshot(absl::string_view snapshot) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
  return parts_->snapshots.remove(snapshot);
}

// ---- Length ----------------------------------------------------------------

absl::Status Qcow2Driver::set_length(uint64_t length_bytes,
                                     SetLengthMode mode) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  // Looked at in here: a longer disk must not be made shorter by who wanted it
  // longer.
  if (mode == SetLengthMode::kGrowOnly && length_bytes <= this->length_bytes())
    return absl::OkStatus();
  return change_length(length_bytes, Preallocation::kOff);
}

absl::Status Qcow2Driver::resize(uint64_t length_bytes,
                                 Preallocation preallocation) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return change_length(length_bytes, preallocation);
}

absl::Status Qcow2Driver::change_length(uint64_t length_bytes,
                                        Preallocation preallocation) {
  if (files_.data_file != nullptr) {
    return absl::UnimplementedError(
        "an image with an external data file cannot be resized");
  }
  absl::Status status = parts_->bitmaps.check_resize(length_bytes);
  if (!status.ok()) return status;
  status = parts_->resizer.resize(length_bytes, preallocation,
                                  parts_->snapshots.count());
  note_length();
  return status;
}

void Qcow2Driver::note_length() {
  const uint64_t length = parts_->image->geometry().size_bytes;
  if (length == header_.size_bytes) return;
  header_.size_bytes = length;
  parts_->bitmaps.resize(length);
  length_bytes_.store(length, std::memory_order_relaxed);
  // Caches cover the image, unless their size was stated.
  const absl::StatusOr<RuntimeOptions> runtime =
      parse_runtime_options(options_, header_);
  if (runtime.ok()) parts_->image->set_cache_sizes(*runtime);
}

// ---- VM state ---------------------------------------------------------------

absl::Status Qcow2Driver::read_vmstate(const IoVector& qiov,
                                       uint64_t position_bytes) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->vmstate.read(qiov, position_bytes);
}

absl::Status Qcow2Driver::write_vmstate(const IoVector& qiov,
                                        uint64_t position_bytes) {
  const ByteRange area{position_bytes, qiov.length_bytes()};
  while (true) {
    {
      const Gate::Passage inside(&gate_);
      if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
      const absl::StatusOr<bool> has_room = parts_->vmstate.has_room(area);
      if (!has_room.ok()) return has_room.status();
      if (*has_room) {
        absl::Status status = parts_->vmstate.write(qiov, position_bytes);
        if (!status.ok()) return status;
        break;
      }
    }
    const Gate::Closure closed(&gate_);
    if (absl::Status may = may_change_snapshots(); !may.ok()) return may;
    absl::Status status = parts_->vmstate.make_room(area);
    if (!status.ok()) return status;
  }
  return finish_change(absl::OkStatus());
}

// ---- Bitmaps ----------------------------------------------------------------

absl::StatusOr<std::vector<DirtyBitmapInfo>> Qcow2Driver::list_bitmaps() {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->bitmaps.list();
}

absl::StatusOr<std::shared_ptr<const DirtyBitmap>> Qcow2Driver::find_bitmap(
    absl::string_view name) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->bitmaps.find(name);
}

absl::Status Qcow2Driver::add_bitmap(const NewDirtyBitmap& wanted) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.add(wanted);
}

absl::Status Qcow2Driver::remove_bitmap(absl::string_view name) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.remove(name);
}

absl::Status Qcow2Driver::clear_bitmap(absl::string_view name) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.clear(name);
}

absl::Status Qcow2Driver::enable_bitmap(absl::string_view name, bool enabled) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.enable(name, enabled);
}

absl::Status Qcow2Driver::merge_bitmap(absl::string_view name,
                                       const DirtyBitmap& source) {
  const Gate::Closure closed(&gate_);
  if (absl::Status may = may_change(); !may.ok()) return may;
  return parts_->bitmaps.merge(name, source);
}

// ---- Amend -----------------------------------------------------------------

absl::Status Qcow2Driver::load_amended() {
  parts_.reset();
  const absl::StatusOr<Header> header = read_header_of(file_.get());
  absl::Status status = header.ok() ? load_parts(*header) : header.status();
  if (!status.ok()) return status;
  // Its length is asked for outside the gate; what changes that says so itself.
  header_.version = header->version;
  header_.incompatible_features = header->incompatible_features;
  header_.compatible_features = header->compatible_features;
  header_.autoclear_features = header->autoclear_features;
  header_.compression_type = header->compression_type;
  header_.refcount_order = header->refcount_order;
  header_.refcount_table_offset = header->refcount_table_offset;
  header_.refcount_table_clusters = header->refcount_table_clusters;
  header_.extensions = header->extensions;
  return status;
}

absl::Status Qcow2Driver::amend(const AmendOptions& options) {
  // Closed for all of it: what the caches have changes.
  const Gate::Closure closed(&gate_);
  absl::Status status = may_change();
  if (status.ok()) status = parts_->image->corruption().writes_allowed();
  if (status.ok()) status = parts_->image->rounds().settle();
  if (!status.ok()) return status;
  const auto image = [this] {
    return parts_ == nullptr ? nullptr : parts_->image.get();
  };
  status = amend_image({image, [this] { return load_amended(); },
                        [this](uint64_t size_bytes) {
                          return change_length(size_bytes, Preallocation::kOff);
                        },
                        [this] { return parts_->snapshots.rewrite_table(); }},
                       options);
  const absl::Status loaded = load_amended();
  return status.ok() ? loaded : status;
}

// ---- Life cycle ------------------------------------------------------------

absl::Status Qcow2Driver::reopen(const ReopenOptions& options) {
  // Nothing may be in flight while what is allowed changes: closed for a flush
  // and the child's own reopen.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return inactive_error();
  // The file is opened anew all the same: that forgets a failed flush.
  if (options.read_only == read_only()) return files_.reopen(options);
  if (options_.snapshot.has_value()) {
    return absl::FailedPreconditionError(
        "the image shows a snapshot, which can be opened for reading only");
  }
  Image& image = *parts_->image;
  if (options.read_only) {
    absl::Status status = parts_->finish_writing();
    if (!status.ok()) return status;
    status = files_.reopen(options);
    // Where it cannot go on with bitmaps that follow, it does not write.
    const bool goes_on = !status.ok() && parts_->bitmaps.mark_in_use().ok();
    read_only_.store(!goes_on, std::memory_order_release);
    return status;
  }
  absl::Status status = check_supported(image.header(), /*read_only=*/false);
  if (status.ok() && image.header().is_dirty()) {
    status = absl::UnimplementedError(
        "qcow2: the image is marked dirty (its refcounts are out of date); it "
        "is repaired when it is opened for writing, not when it is reopened");
  }
  if (status.ok()) status = image.corruption().writes_allowed();
  if (status.ok()) status = files_.reopen(options);
  if (!status.ok()) return status;
  status = parts_->prepare_for_writing();
  if (!status.ok()) {
    files_.reopen(ReopenOptions{.read_only = true}).IgnoreError();
    return status;
  }
  read_only_.store(false, std::memory_order_release);
  return status;
}

absl::Status Qcow2Driver::inactivate() {
  // Closed until the locks are gone: what came later could not be written.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return absl::OkStatus();
  absl::Status status;
  if (!read_only()) status = parts_->finish_writing();
  if (!status.ok()) return status;
  status = files_.inactivate();
  // Still active, but only with bitmaps that follow.
  if (!status.ok() && (read_only() || parts_->bitmaps.mark_in_use().ok()))
    return status;
  live_bitmaps_.forget();
  parts_.reset();
  return status;
}

// An image that is marked dirty has refcounts that are out of date: puts them
// right before anything is written, and reads the header anew.
absl::Status repair_if_dirty(BlockDriver* file, const LogSink& log,
                             Header* header) {
  if (!header->is_dirty()) return absl::OkStatus();
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  CheckOptions options;
  options.fix_leaks = options.fix_errors = true;
  if (log) {
    options.report = [&log](absl::string_view line) {
      log(LogSeverity::kWarning, absl::StrCat("qcow2: ", line));
    };
  }
  const absl::StatusOr<CheckResult> result =
      check_image(&channel, *header, options);
  if (!result.ok()) {
    return with_context(result.status(),
                        "the image is marked dirty and cannot be repaired");
  }
  if (result->corruptions != 0 || result->check_errors != 0) {
    return absl::DataLossError(absl::StrCat(
        "the image is marked dirty, and after a repair ", result->corruptions,
        " corruptions and ", result->check_errors, " check errors are left"));
  }
  absl::StatusOr<Header> repaired = read_header_of(file);
  if (!repaired.ok()) return repaired.status();
  *header = *std::move(repaired);
  return absl::OkStatus();
}

absl::Status Qcow2Driver::load_again() {
  // Somebody else may have written the image meanwhile.
  absl::StatusOr<Header> header = read_shown_header(file_.get(), options_);
  if (!header.ok()) return header.status();
  absl::Status status = check_supported(*header, read_only());
  if (!status.ok()) return status;
  if (options_.open_backing &&
      header->backing_filename != header_.backing_filename) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the backing file was '", header_.backing_filename, "' and is now '",
        header->backing_filename, "': the image must be opened anew"));
  }
  if (header->has_data_file() != header_.has_data_file() ||
      header->data_filename() != header_.data_filename()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the data file was '", header_.data_filename(), "' and is now '",
        header->data_filename(), "': the image must be opened anew"));
  }
  if (!read_only()) status = repair_if_dirty(file_.get(), log_, &*header);
  return status.ok() ? load(*header) : status;
}

absl::Status Qcow2Driver::activate() {
  const Gate::Closure closed(&gate_);
  if (parts_ != nullptr) return absl::OkStatus();
  absl::Status status = files_.activate();
  if (!status.ok()) return status;
  status = load_again();
  // Without the metadata nothing can be done with the file: others may try.
  if (!status.ok()) {
    live_bitmaps_.forget();
    files_.inactivate().IgnoreError();
  }
  return status;
}

absl::Status Qcow2Driver::close() {
  absl::Status status;
  // Inactive, the file is somebody else's.
  if (!read_only() && parts_ != nullptr) status = parts_->finish_writing();
  const absl::Status closed = files_.close();
  return status.ok() ? closed : status;
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> open_qcow2(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context) {
  if (options.for_check) return open_for_check(std::move(file));
  absl::StatusOr<Header> header = read_shown_header(file.get(), options);
  if (!header.ok()) return header.status();
  absl::Status status = check_supported(*header, options.read_only);
  if (!status.ok()) return status;
  absl::StatusOr<ImageFiles> files =
      open_image_files(file, *header, options, context);
  if (!files.ok()) return files.status();
  if (!options.read_only) {
    status = repair_if_dirty(file.get(), context.log, &*header);
    if (!status.ok()) return status;
  }
  auto driver =
      std::make_shared<Qcow2Driver>(*std::move(files), options, context.log);
  status = driver->load(*header);
  if (!status.ok()) return status;
  return driver;
}

}  // namespace spindle::qcow2

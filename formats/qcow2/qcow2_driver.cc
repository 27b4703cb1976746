#include "formats/qcow2/qcow2_driver.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "engine/gate.h"
#include "formats/qcow2/check_driver.h"
#include "formats/qcow2/driver_impl.h"
#include "formats/qcow2/header_file.h"
#include "formats/qcow2/named_files.h"
#include "formats/qcow2/runtime_options.h"
#include "formats/qcow2/snapshot_view.h"

namespace spindle::qcow2 {

namespace {

using Recording = DirtyRecorder::Recording;

absl::Status cut_off_error() {
  return absl::OutOfRangeError(
      "the image has become shorter: the request reaches beyond its end");
}

}  // namespace

absl::Status inactive_error() {
  return absl::FailedPreconditionError(
      "the image is inactive: somebody else may be using it");
}

absl::Status Qcow2Driver::load_parts(const Header& header) {
  absl::StatusOr<RuntimeOptions> runtime =
      parse_runtime_options(options_, header);
  if (!runtime.ok()) return runtime.status();
  absl::StatusOr<std::unique_ptr<Image>> image =
      Image::open(file_, backing_, header, *runtime, log_, files_.data_file,
                  encryption_.get());
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
// crowd.  Passes the gate anew, so that a closer waits for less; while somebody
// has the image to himself, it is left to who comes later.
absl::Status Qcow2Driver::finish_change(absl::Status status) {
  if (!status.ok()) return status;
  const Gate::TryPassage inside(&gate_);
  // Inactive: nothing is left to be written.
  if (!inside.entered() || parts_ == nullptr) return status;
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
    // They would stand there for everybody to read.
    if (encryption_ != nullptr) {
      return absl::UnimplementedError(
          "Compression and encryption not supported at the same time");
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
  const BlockDriver& data = files_.data_file ? *files_.data_file : *file_;
  // Encryption goes on beside other writes.
  limits.writes_take_turns =
      encryption_ == nullptr && data.limits().writes_take_turns;
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
  // A filter asks for this before it knows whether anybody will write.
  if (files_.data_file == nullptr && encryption_ == nullptr)
    list.add(Capability::kWriteCompressed);
  if (read_only()) return list;
  list.add(Capability::kDiscard);
  list.add(Capability::kAmend);
  list.add(Capability::kChangeBacking);
  list.add(Capability::kMakeEmpty);
  list.add(Capability::kSetLength);
  if (files_.can(Capability::kTryWrite) && encryption_ == nullptr)
    list.add(Capability::kTryWrite);
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
  info.encrypted = encryption_ != nullptr;
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
  if (info.encrypted) {
    info.format_specific.emplace_back("encrypt format",
                                      std::string(encryption_name(header)));
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

absl::StatusOr<Header> read_header_of(BlockDriver* file, bool read_only) {
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  return read_header(&channel,
                     read_only ? TableChecks::kForReading : TableChecks::kAll);
}

absl::StatusOr<Header> read_shown_header(BlockDriver* file,
                                         const OpenOptions& options,
                                         bool read_only) {
  absl::StatusOr<Header> header = read_header_of(file, read_only);
  if (!header.ok() || !options.snapshot.has_value()) return header;
  if (!read_only) {
    return absl::InvalidArgumentError(
        "a snapshot can be opened for reading only");
  }
  absl::Status status = show_snapshot(file, *options.snapshot, &*header);
  if (!status.ok()) return status;
  return header;
}

// ---- Opening ----------------------------------------------------------------

absl::StatusOr<std::shared_ptr<BlockDriver>> open_qcow2(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context) {
  if (options.for_check)
    return open_for_check(std::move(file), options, context);
  absl::StatusOr<Header> header =
      read_shown_header(file.get(), options, options.read_only);
  if (!header.ok()) return header.status();
  absl::Status status = check_supported(*header, options.read_only);
  if (!status.ok()) return status;
  // A wrong secret is found before anything else is opened, or repaired.
  absl::StatusOr<std::unique_ptr<Encryption>> encryption =
      Encryption::open(file, *header, options.driver_options, context.secrets,
                       file->limits().memory_alignment_bytes);
  if (!encryption.ok()) return encryption.status();
  absl::StatusOr<ImageFiles> files =
      open_image_files(file, files_named_by(*header), options, context);
  if (!files.ok()) return files.status();
  if (!options.read_only) {
    status = repair_if_dirty(file.get(), context.log, &*header);
    if (!status.ok()) return status;
  }
  auto driver = std::make_shared<Qcow2Driver>(
      *std::move(files), *std::move(encryption), options, context.log);
  status = driver->load(*header);
  if (!status.ok()) return status;
  return driver;
}

}  // namespace spindle::qcow2

#include "formats/qcow/qcow_driver.h"

#include "absl/base/optimization.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_channel.h"
#include "formats/crypto/encrypt_options.h"
#include "formats/crypto/legacy_aes.h"
#include "formats/qcow/check.h"
#include "formats/qcow/runtime_options.h"

namespace spindle::qcow {
namespace {

absl::Status inactive_error() {
  return absl::FailedPreconditionError(
      "the image is inactive: somebody else may be using it");
}

absl::StatusOr<Header> read_header_of(BlockDriver* file) {
  // Not owned: the channel lives no longer than this call.
  ByteChannel channel(std::shared_ptr<BlockDriver>(file, [](BlockDriver*) {}));
  return read_header(&channel);
}

absl::Status only_check_error() {
  return absl::FailedPreconditionError(
      "the image was opened to be checked, not to be used");
}

// Null if the image is not encrypted, or is to be checked only.
absl::StatusOr<std::unique_ptr<const crypto::EncryptedTransfer>> find_key(
    const Header& header, const BlockDriver& file, const OpenOptions& options,
    const OpenContext& context) {
  if (options.for_check) return nullptr;
  const auto passphrase = crypto::find_open_secret(
      options.driver_options, header.is_encrypted() ? crypto::kFormatAes : "",
      context.secrets.get());
  if (!passphrase.ok()) return passphrase.status();
  if (*passphrase == nullptr) return nullptr;
  auto cipher = crypto::legacy_aes_cipher((*passphrase)->span());
  if (!cipher.ok()) return cipher.status();
  return std::make_unique<const crypto::EncryptedTransfer>(
      *std::move(cipher), file.limits().memory_alignment_bytes);
}

}  // namespace

QcowDriver::QcowDriver(
    ImageFiles files,
    std::unique_ptr<const crypto::EncryptedTransfer> encrypted,
    OpenOptions options, LogSink log)
    : files_(std::move(files)),
      encrypted_(std::move(encrypted)),
      options_(std::move(options)),
      log_(std::move(log)),
      // Whoever checks an image does nothing else with it.
      read_only_(options_.read_only || options_.for_check) {}

absl::Status QcowDriver::load(const Header& header) {
  const absl::StatusOr<RuntimeOptions> runtime =
      parse_runtime_options(options_.driver_options, header);
  if (!runtime.ok()) return runtime.status();
  absl::StatusOr<std::unique_ptr<Image>> image = Image::open(
      files_.file, files_.backing, encrypted_.get(), header, *runtime, log_);
  if (!image.ok()) return image.status();
  if (!read_only()) {
    absl::Status status = (*image)->prepare_for_writing();
    if (!status.ok()) return status;
  }
  parts_ = std::make_unique<Parts>(*std::move(image));
  header_ = header;
  return absl::OkStatus();
}

// ---- The data path ---------------------------------------------------------

absl::Status QcowDriver::read(const IoVector& qiov, Sector sector) {
  const Gate::Passage inside(&gate_);
  if (ABSL_PREDICT_FALSE(parts_ == nullptr)) return inactive_error();
  if (ABSL_PREDICT_FALSE(options_.for_check)) return only_check_error();
  return parts_->reader.read({sector.byte_offset()}, qiov);
}

uint64_t QcowDriver::try_read(const IoVector& qiov, Sector sector) {
  const Gate::TryPassage inside(&gate_);
  if (!inside.entered() || parts_ == nullptr || options_.for_check) return 0;
  return parts_->reader.try_read({sector.byte_offset()}, qiov);
}

absl::Status QcowDriver::write(const IoVector& qiov, Sector sector) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (ABSL_PREDICT_FALSE(parts_ == nullptr)) return inactive_error();
    status = parts_->writer.write({sector.byte_offset()}, qiov);
  }
  return finish_change(std::move(status));
}

uint64_t QcowDriver::try_write(const IoVector& qiov, Sector sector) {
  const Gate::TryPassage inside(&gate_);
  if (!inside.entered() || parts_ == nullptr) return 0;
  return parts_->writer.try_write({sector.byte_offset()}, qiov);
}

absl::Status QcowDriver::write_compressed(const IoVector& qiov, Sector sector) {
  absl::Status status;
  {
    const Gate::Passage inside(&gate_);
    if (parts_ == nullptr) return inactive_error();
    // They would stand there for everybody to read.
    if (encrypted_ != nullptr) {
      return absl::UnimplementedError(
          "Compression and encryption not supported at the same time");
    }
    status = parts_->compressed_writer.write({sector.byte_offset()}, qiov);
  }
  return finish_change(std::move(status));
}

absl::Status QcowDriver::flush() {
  const Gate::Passage inside(&gate_);
  // inactivate() has made everything durable.
  if (read_only() || parts_ == nullptr) return absl::OkStatus();
  return parts_->image->rounds().flush();
}

// After the change itself: whoever changed tables writes some back if they
// crowd.  Passes the gate anew, so that a closer waits for less; while somebody
// has the image to himself, it is left to who comes later.
absl::Status QcowDriver::finish_change(absl::Status status) {
  if (!status.ok()) return status;
  const Gate::TryPassage inside(&gate_);
  // Inactive: nothing is left to be written.
  if (!inside.entered() || parts_ == nullptr) return status;
  // A failure stays with the dirty slices, and comes back from the flush that
  // must report it.
  parts_->image->rounds().write_back_if_crowded().IgnoreError();
  return status;
}

// ---- What it is ------------------------------------------------------------

DriverLimits QcowDriver::limits() const {
  DriverLimits limits;
  limits.optimal_transfer_bytes =
      static_cast<uint32_t>(header_.cluster_size_bytes());
  return limits;
}

Capabilities QcowDriver::capabilities() const {
  Capabilities list{Capability::kBlockStatus, Capability::kCheck};
  // What the files must be able to do as well.
  for (Capability c :
       {Capability::kReopen, Capability::kInactivate, Capability::kTryRead}) {
    if (files_.can(c)) list.add(c);
  }
  if (read_only() || encrypted_ != nullptr) return list;
  list.add(Capability::kWriteCompressed);
  if (files_.can(Capability::kTryWrite)) list.add(Capability::kTryWrite);
  return list;
}

ImageInfo QcowDriver::info() const {
  ImageInfo info;
  info.format = std::string(format_name());
  info.filename = filename();
  info.virtual_size_bytes = header_.disk_bytes();
  info.actual_size_bytes = files_.file->info().actual_size_bytes;
  info.cluster_size_bytes = header_.cluster_size_bytes();
  info.encrypted = header_.is_encrypted();
  info.backing_filename = header_.backing_filename;
  const Gate::Passage inside(&gate_);
  info.corrupt = parts_ != nullptr && parts_->image->corruption().is_set();
  return info;
}

absl::StatusOr<BlockStatus> QcowDriver::block_status(ByteRange range,
                                                     BlockStatusScope scope) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  return parts_->status_reader.status(range, scope);
}

absl::StatusOr<CheckResult> QcowDriver::check(const CheckOptions& options) {
  const Gate::Passage inside(&gate_);
  if (parts_ == nullptr) return inactive_error();
  // What is cached must be in the file.
  absl::Status status =
      read_only() ? absl::OkStatus() : parts_->image->rounds().flush();
  if (!status.ok()) return status;
  return check_image(&parts_->image->file(), options);
}

// ---- Reopening, inactivating, activating, closing --------------------------

absl::Status QcowDriver::reopen(const ReopenOptions& options) {
  ReopenOptions own = options;
  const ImageFiles::Reopening files = files_.take_reopening(&own);
  absl::Status status = own.refuse_options();
  if (!status.ok()) return status;
  // The tables are read by the file's alignment.
  if (options.direct.has_value()) {
    return absl::UnimplementedError(
        "qcow: whether the page cache is bypassed cannot be changed while the "
        "image is open");
  }
  // Nothing may be in flight while what is allowed changes: closed for a flush
  // and the child's own reopen.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return inactive_error();
  status = change_access(options.read_only, files);
  if (status.ok())
    options_.no_flush = options.no_flush.value_or(options_.no_flush);
  return status;
}

absl::Status QcowDriver::change_access(bool to_read_only,
                                       const ImageFiles::Reopening& files) {
  const ReopenOptions access{.read_only = read_only(),
                             .no_flush = options_.no_flush};
  ImageFiles::Reopening as_before{
      .file = access, .data_file = {}, .backing = std::nullopt};
  if (files.backing.has_value()) {
    as_before.backing = access;
    as_before.backing->read_only = files_.backing->read_only();
  }
  // The file is opened anew all the same: that forgets a failed flush.
  if (to_read_only == read_only()) return files_.reopen(files, as_before);
  Image& image = *parts_->image;
  absl::Status status;
  if (to_read_only) {
    status = image.rounds().flush();
    if (status.ok()) status = files_.reopen(files, as_before);
    if (status.ok()) read_only_.store(true, std::memory_order_release);
    return status;
  }
  status = image.corruption().writes_allowed();
  if (status.ok()) status = files_.reopen(files, as_before);
  if (!status.ok()) return status;
  status = image.prepare_for_writing();
  if (!status.ok()) {
    files_.reopen(as_before, files).IgnoreError();
    return status;
  }
  read_only_.store(false, std::memory_order_release);
  return status;
}

absl::Status QcowDriver::inactivate() {
  // Closed until the locks are gone: what came later could not be written.
  const Gate::Closure closed(&gate_);
  if (parts_ == nullptr) return absl::OkStatus();
  absl::Status status =
      read_only() ? absl::OkStatus() : parts_->image->rounds().flush();
  if (status.ok()) status = files_.inactivate();
  if (status.ok()) parts_.reset();
  return status;
}

absl::Status QcowDriver::load_again() {
  // Somebody else may have written the image meanwhile.
  const absl::StatusOr<Header> header = read_header_of(files_.file.get());
  if (!header.ok()) return header.status();
  if (header->crypt_method != header_.crypt_method) {
    return absl::FailedPreconditionError(
        absl::StrCat("crypt_method was ", header_.crypt_method, " and is now ",
                     header->crypt_method, ": the image must be opened anew"));
  }
  if (options_.open_backing &&
      header->backing_filename != header_.backing_filename) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the backing file was '", header_.backing_filename, "' and is now '",
        header->backing_filename, "': the image must be opened anew"));
  }
  return load(*header);
}

absl::Status QcowDriver::activate() {
  const Gate::Closure closed(&gate_);
  if (parts_ != nullptr) return absl::OkStatus();
  absl::Status status = files_.activate();
  if (!status.ok()) return status;
  status = load_again();
  // Without the metadata nothing can be done with the file: others may try.
  if (!status.ok()) files_.inactivate().IgnoreError();
  return status;
}

absl::Status QcowDriver::close() {
  absl::Status status;
  // Inactive, the file is somebody else's.
  if (!read_only() && parts_ != nullptr)
    status = parts_->image->rounds().flush();
  const absl::Status closed = files_.close();
  return status.ok() ? closed : status;
}

// ---- Opening ----------------------------------------------------------------

absl::StatusOr<std::shared_ptr<BlockDriver>> open_qcow(
    std::shared_ptr<BlockDriver> file, const OpenOptions& options,
    const OpenContext& context) {
  if (options.snapshot.has_value())
    return absl::UnimplementedError("a qcow image has no snapshots");
  const absl::StatusOr<Header> header = read_header_of(file.get());
  if (!header.ok()) return header.status();
  auto encrypted = find_key(*header, *file, options, context);
  if (!encrypted.ok()) return encrypted.status();
  const NamedFiles named{.backing_filename = header->backing_filename,
                         .backing_format_can_be_stated = false};
  absl::StatusOr<ImageFiles> files =
      open_image_files(std::move(file), named, options, context);
  if (!files.ok()) return files.status();
  auto driver = std::make_shared<QcowDriver>(
      *std::move(files), *std::move(encrypted), options, context.log);
  absl::Status status = driver->load(*header);
  if (!status.ok()) return status;
  return driver;
}

}  // namespace spindle::qcow

#include "formats/luks/luks_driver.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "formats/crypto/algorithms.h"
#include "formats/luks/header.h"

namespace spindle::luks {
namespace {

using crypto::EncryptedTransfer;

EncryptedTransfer::Place place_of(uint64_t payload_bytes, Sector sector) {
  return {payload_bytes + sector.byte_offset(), sector.index()};
}

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> LuksDriver::open(
    std::shared_ptr<BlockDriver> file, const SecretBytes& passphrase,
    std::shared_ptr<const SecretStore> secrets) {
  const ByteRange whole{0, file->length_bytes()};
  absl::StatusOr<std::unique_ptr<Volume>> volume =
      Volume::open(file, whole, passphrase.span(), std::move(secrets));
  if (!volume.ok()) return volume.status();
  auto cipher = (*volume)->make_cipher();
  if (!cipher.ok()) return cipher.status();
  return std::make_shared<LuksDriver>(std::move(file), *std::move(volume),
                                      *std::move(cipher));
}

LuksDriver::LuksDriver(std::shared_ptr<BlockDriver> file,
                       std::unique_ptr<Volume> volume,
                       std::unique_ptr<crypto::SectorCipher> cipher)
    : file_(std::move(file)),
      channel_(file_),
      volume_(std::move(volume)),
      payload_bytes_(volume_->payload_bytes()),
      transfer_(std::move(cipher), file_->limits().memory_alignment_bytes) {}

// ---- The data path ----------------------------------------------------------

absl::Status LuksDriver::read(const IoVector& qiov, Sector sector) {
  return transfer_.read(&channel_, Purpose::kReadAio, qiov,
                        place_of(payload_bytes_, sector));
}

absl::Status LuksDriver::write(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(!read_only());
  return transfer_.write(&channel_, Purpose::kWriteAio, qiov,
                         place_of(payload_bytes_, sector));
}

absl::Status LuksDriver::flush() { return channel_.flush(); }

uint64_t LuksDriver::try_read(const IoVector& qiov, Sector sector) {
  return transfer_.try_read(&channel_, Purpose::kReadAio, qiov,
                            place_of(payload_bytes_, sector));
}

// ---- What it is -------------------------------------------------------------

uint64_t LuksDriver::length_bytes() const {
  const uint64_t file_bytes = file_->length_bytes();
  // A sector that is not whole cannot be decrypted.
  return file_bytes < payload_bytes_
             ? 0
             : align_down(file_bytes - payload_bytes_, kSectorSizeBytes);
}

DriverLimits LuksDriver::limits() const {
  const DriverLimits of_file = file_->limits();
  DriverLimits limits;
  limits.memory_alignment_bytes = of_file.memory_alignment_bytes;
  // Where the payload is not aligned, the channel makes up for it.
  if (is_aligned(payload_bytes_, of_file.request_alignment_bytes))
    limits.request_alignment_bytes = of_file.request_alignment_bytes;
  limits.discard_alignment_bytes = limits.write_zeroes_alignment_bytes =
      limits.request_alignment_bytes;
  return limits;
}

Capabilities LuksDriver::capabilities() const {
  const Capabilities of_file = file_->capabilities();
  Capabilities capabilities{Capability::kAmend};
  for (const Capability passed_on :
       {Capability::kSetLength, Capability::kReopen, Capability::kInactivate,
        Capability::kTryRead}) {
    if (of_file.has(passed_on)) capabilities.add(passed_on);
  }
  return capabilities;
}

ImageInfo LuksDriver::info() const {
  ImageInfo info;
  info.format = std::string(format_name());
  info.filename = filename();
  info.virtual_size_bytes = length_bytes();
  info.actual_size_bytes = file_->info().actual_size_bytes;
  info.encrypted = true;
  const Header header = volume_->header();
  info.format_specific = {
      {"hash alg", std::string(crypto::hash_name(header.hash))},
      {"cipher alg", crypto::cipher_name(header.spec.cipher)},
      {"uuid", header.uuid},
      {"cipher mode", header.mode},
      {"active slots", absl::StrCat(header.active_slots())},
      {"payload offset", absl::StrCat(payload_bytes_)},
  };
  return info;
}

// ---- Changes ----------------------------------------------------------------

absl::StatusOr<uint64_t> LuksDriver::file_length(uint64_t length_bytes) const {
  const std::optional<uint64_t> sum = checked_add(length_bytes, payload_bytes_);
  constexpr uint64_t kLongest = uint64_t{1} << 62;
  if (sum.has_value() && *sum <= kLongest)
    return align_up(*sum, kSectorSizeBytes);
  return absl::ResourceExhaustedError(
      absl::StrCat("a length of ", length_bytes, " bytes is too large"));
}

absl::Status LuksDriver::set_length(uint64_t length_bytes, SetLengthMode mode) {
  const absl::StatusOr<uint64_t> wanted = file_length(length_bytes);
  return wanted.ok() ? file_->set_length(*wanted, mode) : wanted.status();
}

absl::Status LuksDriver::resize(uint64_t length_bytes,
                                Preallocation preallocation) {
  const absl::StatusOr<uint64_t> wanted = file_length(length_bytes);
  return wanted.ok() ? file_->resize(*wanted, preallocation) : wanted.status();
}

absl::Status LuksDriver::amend(const AmendOptions& options) {
  if (read_only())
    return absl::PermissionDeniedError("the volume is read-only");
  return volume_->amend(options, [](Volume::Write write) { return write(); });
}

absl::Status LuksDriver::reopen(const ReopenOptions& options) {
  ReopenOptions own = options;
  const ReopenOptions below = own.take_below({"file"});
  absl::Status status = own.refuse_options();
  if (!status.ok()) return status;
  // The channel over the file goes by its alignment.
  if (options.direct.has_value()) {
    return absl::UnimplementedError(
        "luks: whether the page cache is bypassed cannot be changed while the "
        "volume is open");
  }
  return file_->reopen(below);
}

}  // namespace spindle::luks

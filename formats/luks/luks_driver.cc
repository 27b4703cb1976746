#include "formats/luks/luks_driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"
#include "formats/luks/amend.h"
#include "formats/luks/key_slots.h"

namespace spindle::luks {
namespace {

// What is read and decrypted, or encrypted and written, in one go: it stays in
// the processor's cache between the two.
constexpr size_t kPieceBytes = size_t{256} << 10;
constexpr size_t kPiecesKept = 16;
constexpr size_t kBufferAlignmentBytes = 4096;
constexpr uint64_t kMaxTryBytes = uint64_t{16} << 10;

}  // namespace

absl::StatusOr<std::shared_ptr<BlockDriver>> LuksDriver::open(
    std::shared_ptr<BlockDriver> file, const SecretBytes& passphrase,
    std::shared_ptr<const SecretStore> secrets) {
  ByteChannel channel(file);
  const HeaderArea area{&channel};
  const absl::StatusOr<Header> header = read_header(area, file->length_bytes());
  if (!header.ok()) return header.status();
  absl::StatusOr<SecretBytes> key = unlock(area, *header, passphrase.span());
  if (!key.ok()) return key.status();
  auto cipher = crypto::SectorCipher::create(header->spec, key->span());
  if (!cipher.ok()) return cipher.status();
  return std::make_shared<LuksDriver>(std::move(file), *header, *std::move(key),
                                      *std::move(cipher), std::move(secrets));
}

LuksDriver::LuksDriver(std::shared_ptr<BlockDriver> file, const Header& header,
                       SecretBytes key,
                       std::unique_ptr<crypto::SectorCipher> cipher,
                       std::shared_ptr<const SecretStore> secrets)
    : file_(std::move(file)),
      channel_(file_),
      payload_bytes_(uint64_t{header.payload_sector} * kSectorSizeBytes),
      key_(std::move(key)),
      cipher_(std::move(cipher)),
      secrets_(std::move(secrets)),
      buffers_(std::max<size_t>(kBufferAlignmentBytes,
                                file_->limits().memory_alignment_bytes),
               kPiecesKept, kPieceBytes),
      header_(header) {}

// ---- The data path ----------------------------------------------------------

absl::Status LuksDriver::read(const IoVector& qiov, Sector sector) {
  const uint64_t offset = sector.byte_offset();
  for (uint64_t done = 0; done < qiov.length_bytes(); done += kPieceBytes) {
    const IoVector piece = qiov.slice(
        done, std::min<uint64_t>(kPieceBytes, qiov.length_bytes() - done));
    absl::Status status =
        channel_.read(Purpose::kReadAio, piece, payload_bytes_ + offset + done);
    if (status.ok())
      status = cipher_->decrypt(piece, (offset + done) / kSectorSizeBytes);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status LuksDriver::write(const IoVector& qiov, Sector sector) {
  ABSL_ASSERT(!read_only());
  if (qiov.empty()) return absl::OkStatus();
  const uint64_t offset = sector.byte_offset();
  const AlignedBufferPool::Lease buffer = buffers_.take(kPieceBytes);
  for (uint64_t done = 0; done < qiov.length_bytes(); done += kPieceBytes) {
    const uint64_t bytes =
        std::min<uint64_t>(kPieceBytes, qiov.length_bytes() - done);
    absl::Status status =
        cipher_->encrypt(qiov.slice(done, bytes),
                         (offset + done) / kSectorSizeBytes, buffer.data());
    if (status.ok()) {
      status = channel_.write(Purpose::kWriteAio, buffer.data(), bytes,
                              payload_bytes_ + offset + done);
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status LuksDriver::flush() { return channel_.flush(); }

uint64_t LuksDriver::try_read(const IoVector& qiov, Sector sector) {
  if (qiov.length_bytes() > kMaxTryBytes) return 0;
  const uint64_t bytes = channel_.try_read(
      Purpose::kReadAio, qiov, payload_bytes_ + sector.byte_offset());
  if (bytes == 0) return 0;
  const absl::Status status =
      cipher_->decrypt(qiov.slice(0, bytes), sector.index());
  // read() finds the error again.
  return status.ok() ? bytes : 0;
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
  absl::MutexLock lock(&header_mutex_);
  info.format_specific = {
      {"hash alg", std::string(crypto::hash_name(header_.hash))},
      {"cipher alg", crypto::cipher_name(header_.spec.cipher)},
      {"uuid", header_.uuid},
      {"cipher mode", header_.mode},
      {"active slots", absl::StrCat(header_.active_slots())},
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
  if (read_only()) return absl::PermissionDeniedError("the volume is read-only");
  Header header;
  {
    absl::MutexLock lock(&header_mutex_);
    if (is_amending_) {
      return absl::FailedPreconditionError(
          "the key slots are being changed already");
    }
    is_amending_ = true;
    header = header_;
  }
  const absl::Status status =
      amend_slots({&channel_}, &header, key_, secrets_.get(), options);
  absl::MutexLock lock(&header_mutex_);
  is_amending_ = false;
  header_ = header;
  return status;
}

absl::Status LuksDriver::reopen(const ReopenOptions& options) {
  return file_->reopen(options);
}

}  // namespace spindle::luks

#include "formats/luks/volume.h"

#include <utility>

#include "formats/luks/amend.h"

namespace spindle::luks {

Volume::Volume(std::shared_ptr<BlockDriver> file, ByteRange area,
               std::shared_ptr<const SecretStore> secrets)
    : channel_(std::move(file)), area_(area), secrets_(std::move(secrets)) {}

absl::StatusOr<std::unique_ptr<Volume>> Volume::open(
    std::shared_ptr<BlockDriver> file, ByteRange area,
    absl::Span<const uint8_t> passphrase,
    std::shared_ptr<const SecretStore> secrets) {
  // Not through make_unique: the constructor is private.
  std::unique_ptr<Volume> volume(
      new Volume(std::move(file), area, std::move(secrets)));
  const absl::StatusOr<Header> header =
      read_header(volume->area(), area.length);
  if (!header.ok()) return header.status();
  absl::StatusOr<SecretBytes> key = unlock(volume->area(), *header, passphrase);
  if (!key.ok()) return key.status();
  volume->key_ = *std::move(key);
  volume->payload_bytes_ = uint64_t{header->payload_sector} * kSectorSizeBytes;
  absl::MutexLock lock(&volume->mutex_);
  volume->header_ = *header;
  return volume;
}

Header Volume::header() const {
  absl::MutexLock lock(&mutex_);
  return header_;
}

absl::StatusOr<std::unique_ptr<crypto::SectorCipher>> Volume::make_cipher()
    const {
  return crypto::SectorCipher::create(header().spec, key_.span());
}

absl::Status Volume::reread() {
  const absl::StatusOr<Header> header = read_header(area(), area_.length);
  if (!header.ok()) return header.status();
  const absl::StatusOr<bool> same = is_key_of(*header, key_);
  if (!same.ok()) return same.status();
  if (!*same || header->spec != this->header().spec ||
      uint64_t{header->payload_sector} * kSectorSizeBytes != payload_bytes_) {
    return absl::FailedPreconditionError(
        "the LUKS volume is another one now: it must be opened anew");
  }
  absl::MutexLock lock(&mutex_);
  header_ = *header;
  return absl::OkStatus();
}

absl::Status Volume::start_change(Header* header) {
  absl::MutexLock lock(&mutex_);
  if (is_changing_) {
    return absl::FailedPreconditionError(
        "the key slots are being changed already");
  }
  is_changing_ = true;
  *header = header_;
  return absl::OkStatus();
}

void Volume::end_change(const Header& header) {
  absl::MutexLock lock(&mutex_);
  is_changing_ = false;
  header_ = header;
}

absl::Status Volume::amend(const AmendOptions& options,
                           absl::FunctionRef<absl::Status(Write)> around) {
  Header header;
  absl::Status status = start_change(&header);
  if (!status.ok()) return status;
  const absl::StatusOr<SlotChange> change =
      plan_change(area(), header, key_, secrets_.get(), options);
  status = change.ok()
               ? around([&] { return write_change(area(), &header, *change); })
               : change.status();
  end_change(header);
  return status;
}

}  // namespace spindle::luks

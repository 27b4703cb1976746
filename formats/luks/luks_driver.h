// LuksDriver: a LUKS volume over a file.
//
// Offsets are those of the file, moved by the payload's start; data are
// encrypted and decrypted on the way (EncryptedTransfer).
//
// Thread safety: any thread may call any method at any time.  Reads and writes
// take no lock of the driver's.
#ifndef SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_
#define SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/crypto/encrypted_transfer.h"
#include "formats/crypto/sector_cipher.h"
#include "formats/luks/volume.h"

namespace spindle::luks {

class LuksDriver final : public BlockDriver {
 public:
  // Errors: those of Volume::open().
  static absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const SecretBytes& passphrase,
      std::shared_ptr<const SecretStore> secrets);
  LuksDriver(std::shared_ptr<BlockDriver> file, std::unique_ptr<Volume> volume,
             std::unique_ptr<crypto::SectorCipher> cipher);

  absl::Status read(const IoVector& qiov, Sector sector) override;
  absl::Status write(const IoVector& qiov, Sector sector) override;
  absl::Status flush() override;
  // Short requests only: decrypting is work for the pool.
  uint64_t try_read(const IoVector& qiov, Sector sector) override;

  absl::string_view format_name() const override { return "luks"; }
  std::string filename() const override { return file_->filename(); }
  uint64_t length_bytes() const override;
  bool read_only() const override { return file_->read_only(); }
  DriverLimits limits() const override;
  Capabilities capabilities() const override;
  ImageInfo info() const override;
  std::optional<StorageIdentity> identity() const override {
    return file_->identity();
  }
  BlockDriver* below() const override { return file_.get(); }
  AccessObserver* access_observer() override {
    return file_->access_observer();
  }

  // What the volume gains reads as noise, not as zeroes, as in QEMU: nothing
  // that is not encrypted decrypts to zeroes.
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  // See Volume::amend().  Errors: also kPermissionDenied if the volume is
  // read-only.
  absl::Status amend(const AmendOptions& options) override;
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override { return file_->inactivate(); }
  absl::Status activate() override { return file_->activate(); }
  absl::Status close() override { return file_->close(); }

 private:
  absl::StatusOr<uint64_t> file_length(uint64_t length_bytes) const;

  const std::shared_ptr<BlockDriver> file_;
  ByteChannel channel_;
  const std::unique_ptr<Volume> volume_;
  const uint64_t payload_bytes_;  // where the data begin
  const crypto::EncryptedTransfer transfer_;
};

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_

// LuksDriver: a LUKS volume over a file.
//
// Reads go into the caller's memory and are decrypted there; writes are
// encrypted into buffers of the driver's own, so the caller's memory never
// changes.  Offsets are those of the file, moved by the payload's start.
//
// Thread safety: any thread may call any method at any time.  Reads and writes
// take no lock of the driver's but, for a moment, that of its pool of buffers.
#ifndef SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_
#define SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/aligned_buffer.h"
#include "engine/block_driver.h"
#include "engine/byte_channel.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"
#include "formats/crypto/sector_cipher.h"
#include "formats/luks/header.h"

namespace spindle::luks {

class LuksDriver final : public BlockDriver {
 public:
  // Errors: those of read_header() and unlock().
  static absl::StatusOr<std::shared_ptr<BlockDriver>> open(
      std::shared_ptr<BlockDriver> file, const SecretBytes& passphrase,
      std::shared_ptr<const SecretStore> secrets);
  // REQUIRES: `key` is that of the volume in `file`, whose header `header` is.
  LuksDriver(std::shared_ptr<BlockDriver> file, const Header& header,
             SecretBytes key, std::unique_ptr<crypto::SectorCipher> cipher,
             std::shared_ptr<const SecretStore> secrets);

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
  AccessObserver* access_observer() override {
    return file_->access_observer();
  }

  // What the volume gains reads as noise, not as zeroes, as in QEMU: nothing
  // that is not encrypted decrypts to zeroes.
  absl::Status set_length(uint64_t length_bytes, SetLengthMode mode) override;
  absl::Status resize(uint64_t length_bytes,
                      Preallocation preallocation) override;
  // See amend.h.  Errors: also kFailedPrecondition while another one runs,
  // kPermissionDenied if the volume is read-only.
  absl::Status amend(const AmendOptions& options) override
      ABSL_LOCKS_EXCLUDED(header_mutex_);
  absl::Status reopen(const ReopenOptions& options) override;
  absl::Status inactivate() override { return file_->inactivate(); }
  absl::Status activate() override { return file_->activate(); }
  absl::Status close() override { return file_->close(); }

 private:
  absl::StatusOr<uint64_t> file_length(uint64_t length_bytes) const;

  const std::shared_ptr<BlockDriver> file_;
  ByteChannel channel_;
  const uint64_t payload_bytes_;  // where the data begin
  const SecretBytes key_;
  const std::unique_ptr<crypto::SectorCipher> cipher_;
  const std::shared_ptr<const SecretStore> secrets_;  // may be null
  AlignedBufferPool buffers_;

  // A leaf: nothing is acquired, and no I/O done, while it is held.
  mutable absl::Mutex header_mutex_;
  Header header_ ABSL_GUARDED_BY(header_mutex_);
  bool is_amending_ ABSL_GUARDED_BY(header_mutex_) = false;
};

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_LUKS_DRIVER_H_

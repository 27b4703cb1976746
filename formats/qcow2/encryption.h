// Encryption: how an image's guest data are encrypted, and what they are
// decrypted with.
//
// qcow2 specification, "Header", crypt_method, and "Full disk encryption header
// pointer".  With LUKS a sector's number is that of where it lies in the file
// that holds it; with the old AES, that of where the guest has it.  Compressed
// clusters are not encrypted: Spindle writes none into an encrypted image, and
// reads what others wrote.
//
// Thread safety: any thread may call any method at any time.
#ifndef SPINDLE_FORMATS_QCOW2_ENCRYPTION_H_
#define SPINDLE_FORMATS_QCOW2_ENCRYPTION_H_

#include <cstddef>
#include <memory>
#include <optional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/amend.h"
#include "engine/block_driver.h"
#include "engine/format.h"
#include "engine/secret_store.h"
#include "engine/sector.h"
#include "formats/cluster/data_transfer.h"
#include "formats/crypto/encrypted_transfer.h"
#include "formats/crypto/sector_cipher.h"
#include "formats/luks/volume.h"
#include "formats/qcow2/header.h"

namespace spindle::qcow2 {

// "aes", "luks", or empty.
absl::string_view encryption_name(const Header& header);

// Where the LUKS header lies, in bytes of the file; nothing if there is none.
// Errors: kInvalidArgument if the header extension is not what crypt_method
// asks for.
absl::StatusOr<std::optional<ByteRange>> find_luks_header(const Header& header);

class Encryption {
 public:
  // Null if the image is not encrypted.  Derives keys, which takes its time;
  // writes nothing.  `memory_alignment_bytes`: as EncryptedTransfer.
  // Errors: kInvalidArgument if the options do not name a secret, or another
  // format than the image's; kNotFound; kPermissionDenied if the secret opens
  // no key slot; kDataLoss for a damaged LUKS header.
  static absl::StatusOr<std::unique_ptr<Encryption>> open(
      std::shared_ptr<BlockDriver> file, const Header& header,
      const OptionMap& options, std::shared_ptr<const SecretStore> secrets,
      size_t memory_alignment_bytes);

  const crypto::EncryptedTransfer& transfer() const { return transfer_; }
  SectorNumbering numbering() const {
    return luks_ != nullptr ? SectorNumbering::kHost : SectorNumbering::kGuest;
  }

  // Changes key slots; see luks::Volume::amend().  The options have no prefix.
  // Errors: also kUnimplemented for the old AES.
  absl::Status amend(
      const AmendOptions& options,
      absl::FunctionRef<absl::Status(luks::Volume::Write)> around);
  // Somebody else may have changed the image.
  // Errors: those of luks::Volume::reread().
  absl::Status reread();

 private:
  Encryption(std::unique_ptr<luks::Volume> luks,
             std::unique_ptr<crypto::SectorCipher> cipher,
             size_t memory_alignment_bytes);

  const std::unique_ptr<luks::Volume> luks_;  // null: the old AES
  const crypto::EncryptedTransfer transfer_;
};

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_ENCRYPTION_H_

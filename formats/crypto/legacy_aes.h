// The old encryption of qcow and qcow2 (crypt_method 1): AES with a key of 128
// bits in CBC mode.  The key is the passphrase itself, and the initialisation
// vector of a sector its number as the guest counts.  It is weak, and a wrong
// passphrase goes unnoticed: it is there so that old images can be read, and
// written as long as they live.
//
// qcow2 specification, "Header", crypt_method.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_CRYPTO_LEGACY_AES_H_
#define SPINDLE_FORMATS_CRYPTO_LEGACY_AES_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/crypto/sector_cipher.h"

namespace spindle::crypto {

// Of `passphrase` the first 16 bytes count; a shorter one goes on with zeroes.
absl::StatusOr<std::unique_ptr<SectorCipher>> legacy_aes_cipher(
    absl::Span<const uint8_t> passphrase);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_LEGACY_AES_H_

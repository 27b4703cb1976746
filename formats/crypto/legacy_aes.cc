#include "formats/crypto/legacy_aes.h"

#include <algorithm>

#include "engine/secret_bytes.h"
#include "formats/crypto/algorithms.h"

namespace spindle::crypto {

absl::StatusOr<std::unique_ptr<SectorCipher>> legacy_aes_cipher(
    absl::Span<const uint8_t> passphrase) {
  const SectorCipherSpec spec{
      .cipher = {.family = CipherFamily::kAes, .key_bytes = 16},
      .mode = CipherMode::kCbc,
      .iv_generator = IvGenerator::kPlain64};
  SecretBytes key(spec.key_bytes());
  std::copy_n(passphrase.begin(), std::min(passphrase.size(), key.size()),
              key.data());
  return SectorCipher::create(spec, key.span());
}

}  // namespace spindle::crypto

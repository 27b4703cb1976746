// The algorithms that images are encrypted with, by QEMU's names and by those
// that a LUKS header holds.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_CRYPTO_ALGORITHMS_H_
#define SPINDLE_FORMATS_CRYPTO_ALGORITHMS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace spindle::crypto {

// All have blocks of 16 bytes.
enum class CipherFamily : uint8_t { kAes, kSerpent, kTwofish };
enum class CipherMode : uint8_t { kEcb, kCbc, kXts };
// Where a sector's initialisation vector comes from.
enum class IvGenerator : uint8_t {
  kNone,     // ECB has none
  kPlain,    // the sector's number, 32 bits of it
  kPlain64,  // the sector's number
  kEssiv,    // the sector's number, encrypted with a hash of the key
};
enum class Hash : uint8_t {
  kSha1,
  kSha224,
  kSha256,
  kSha384,
  kSha512,
  kRipemd160
};

inline constexpr size_t kCipherBlockBytes = 16;
inline constexpr size_t kMaxDigestBytes = 64;

// A family with the length of its key; XTS has two of them, one behind the
// other.
struct Cipher {
  CipherFamily family = CipherFamily::kAes;
  size_t key_bytes = 32;  // 16, 24 or 32
  bool operator==(const Cipher&) const = default;
};

struct SectorCipherSpec {
  Cipher cipher;
  CipherMode mode = CipherMode::kXts;
  IvGenerator iv_generator = IvGenerator::kPlain64;
  Hash iv_hash = Hash::kSha256;  // of kEssiv
  bool operator==(const SectorCipherSpec&) const = default;
  // Of the whole key: twice the cipher's for XTS.
  size_t key_bytes() const {
    return mode == CipherMode::kXts ? 2 * cipher.key_bytes : cipher.key_bytes;
  }
};

size_t digest_bytes(Hash hash);

// "aes", "serpent", "twofish".
absl::string_view family_name(CipherFamily family);
std::optional<CipherFamily> parse_family(absl::string_view name);
// "aes-256".
std::string cipher_name(const Cipher& cipher);
std::optional<Cipher> parse_cipher(absl::string_view name);
// "ecb", "cbc", "xts".
absl::string_view mode_name(CipherMode mode);
std::optional<CipherMode> parse_mode(absl::string_view name);
// "plain", "plain64", "essiv".  REQUIRES: not kNone.
absl::string_view iv_generator_name(IvGenerator generator);
std::optional<IvGenerator> parse_iv_generator(absl::string_view name);
// "sha256".
absl::string_view hash_name(Hash hash);
std::optional<Hash> parse_hash(absl::string_view name);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_ALGORITHMS_H_

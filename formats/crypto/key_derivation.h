// Hashes, keys from passphrases (PBKDF2, RFC 8018 section 5.2), and random
// bytes.
//
// Thread safety: any thread may call any function; a Hasher is a value.
#ifndef SPINDLE_FORMATS_CRYPTO_KEY_DERIVATION_H_
#define SPINDLE_FORMATS_CRYPTO_KEY_DERIVATION_H_

#include <gcrypt.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/secret_bytes.h"
#include "formats/crypto/algorithms.h"

namespace spindle::crypto {

// One hash after another; the state, which may have seen a key, is secret.
// One thread at a time.
class Hasher {
 public:
  static absl::StatusOr<Hasher> create(Hash hash);

  size_t digest_bytes() const;
  // REQUIRES: out.size() == digest_bytes().
  void digest(absl::Span<const uint8_t> bytes, absl::Span<uint8_t> out);

 private:
  struct Closer {
    void operator()(gcry_md_hd_t handle) const { gcry_md_close(handle); }
  };
  using Handle = std::unique_ptr<std::remove_pointer_t<gcry_md_hd_t>, Closer>;

  Hasher(Hash hash, gcry_md_hd_t handle) : hash_(hash), handle_(handle) {}

  Hash hash_;
  Handle handle_;
};

// REQUIRES: iterations > 0, !salt.empty(), key_bytes > 0.
absl::StatusOr<SecretBytes> derive_key(Hash hash,
                                       absl::Span<const uint8_t> passphrase,
                                       absl::Span<const uint8_t> salt,
                                       uint32_t iterations, size_t key_bytes);

// How many iterations derive_key() does in `time` on this thread now, for keys
// of `key_bytes`; takes up to about a quarter of a second of processor time.
absl::StatusOr<uint64_t> measure_iterations(Hash hash, size_t key_bytes,
                                            absl::Duration time);

// From the kernel's generator.
absl::Status fill_random(absl::Span<uint8_t> out);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_KEY_DERIVATION_H_

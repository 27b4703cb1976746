#include "formats/crypto/key_derivation.h"

#include <errno.h>
#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <limits>

#include "absl/base/macros.h"
#include "engine/errors.h"
#include "formats/crypto/gcrypt_library.h"

namespace spindle::crypto {
namespace {

int library_hash(Hash hash) {
  switch (hash) {
    case Hash::kSha1:
      return GCRY_MD_SHA1;
    case Hash::kSha224:
      return GCRY_MD_SHA224;
    case Hash::kSha256:
      return GCRY_MD_SHA256;
    case Hash::kSha384:
      return GCRY_MD_SHA384;
    case Hash::kSha512:
      return GCRY_MD_SHA512;
    case Hash::kRipemd160:
      return GCRY_MD_RMD160;
  }
  return GCRY_MD_NONE;
}

// Of this thread only: another one's work must not make keys weaker.
absl::Duration thread_time() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

}  // namespace

absl::StatusOr<Hasher> Hasher::create(Hash hash) {
  const absl::Status status = use_gcrypt();
  if (!status.ok()) return status;
  gcry_md_hd_t handle = nullptr;
  const gcry_error_t error =
      gcry_md_open(&handle, library_hash(hash), GCRY_MD_FLAG_SECURE);
  if (error != 0) return gcrypt_status(error, "opening a hash");
  return Hasher(hash, handle);
}

size_t Hasher::digest_bytes() const { return crypto::digest_bytes(hash_); }

void Hasher::digest(absl::Span<const uint8_t> bytes, absl::Span<uint8_t> out) {
  ABSL_ASSERT(out.size() == digest_bytes());
  gcry_md_reset(handle_.get());
  gcry_md_write(handle_.get(), bytes.data(), bytes.size());
  const uint8_t* const result =
      gcry_md_read(handle_.get(), library_hash(hash_));
  std::copy_n(result, out.size(), out.data());
}

absl::StatusOr<SecretBytes> derive_key(Hash hash,
                                       absl::Span<const uint8_t> passphrase,
                                       absl::Span<const uint8_t> salt,
                                       uint32_t iterations, size_t key_bytes) {
  ABSL_ASSERT(iterations > 0 && !salt.empty() && key_bytes > 0);
  absl::Status status = use_gcrypt();
  if (!status.ok()) return status;
  SecretBytes key(key_bytes);
  // The library wants an address even for an empty passphrase.
  static constexpr uint8_t kNothing = 0;
  const gcry_error_t error = gcry_kdf_derive(
      passphrase.empty() ? &kNothing : passphrase.data(), passphrase.size(),
      GCRY_KDF_PBKDF2, library_hash(hash), salt.data(), salt.size(), iterations,
      key.size(), key.data());
  if (error != 0) return gcrypt_status(error, "deriving a key");
  return key;
}

absl::StatusOr<uint64_t> measure_iterations(Hash hash, size_t key_bytes,
                                            absl::Duration time) {
  const absl::Duration long_enough =
      std::clamp(time, absl::Milliseconds(5), absl::Milliseconds(100));
  constexpr uint8_t kSample[32] = {};
  uint32_t iterations = 1 << 12;
  while (true) {
    const absl::Duration before = thread_time();
    const absl::StatusOr<SecretBytes> key =
        derive_key(hash, kSample, kSample, iterations, key_bytes);
    if (!key.ok()) return key.status();
    const absl::Duration spent = thread_time() - before;
    if (spent >= long_enough ||
        iterations > std::numeric_limits<uint32_t>::max() / 2) {
      return static_cast<uint64_t>(iterations *
                                   absl::FDivDuration(time, spent));
    }
    iterations *= 2;
  }
}

absl::Status fill_random(absl::Span<uint8_t> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got = getrandom(out.data() + done, out.size() - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_status(errno, "getrandom");
    done += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace spindle::crypto

#include "formats/crypto/sector_cipher.h"

#include <gcrypt.h>
#include <sys/uio.h>

#include <optional>
#include <type_traits>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/sector.h"
#include "engine/thread_shard.h"
#include "formats/crypto/gcrypt_library.h"
#include "formats/crypto/key_derivation.h"

namespace spindle::crypto {
namespace {

using InitialVector = std::array<uint8_t, kCipherBlockBytes>;

struct HandleCloser {
  void operator()(gcry_cipher_hd_t handle) const { gcry_cipher_close(handle); }
};
using Handle =
    std::unique_ptr<std::remove_pointer_t<gcry_cipher_hd_t>, HandleCloser>;

std::optional<int> library_cipher(const Cipher& cipher) {
  switch (cipher.family) {
    case CipherFamily::kAes:
      if (cipher.key_bytes == 16) return GCRY_CIPHER_AES128;
      if (cipher.key_bytes == 24) return GCRY_CIPHER_AES192;
      if (cipher.key_bytes == 32) return GCRY_CIPHER_AES256;
      break;
    case CipherFamily::kSerpent:
      if (cipher.key_bytes == 16) return GCRY_CIPHER_SERPENT128;
      if (cipher.key_bytes == 24) return GCRY_CIPHER_SERPENT192;
      if (cipher.key_bytes == 32) return GCRY_CIPHER_SERPENT256;
      break;
    case CipherFamily::kTwofish:
      if (cipher.key_bytes == 16) return GCRY_CIPHER_TWOFISH128;
      if (cipher.key_bytes == 32) return GCRY_CIPHER_TWOFISH;
      break;
  }
  return std::nullopt;
}

int library_mode(CipherMode mode) {
  switch (mode) {
    case CipherMode::kEcb:
      return GCRY_CIPHER_MODE_ECB;
    case CipherMode::kCbc:
      return GCRY_CIPHER_MODE_CBC;
    case CipherMode::kXts:
      return GCRY_CIPHER_MODE_XTS;
  }
  return GCRY_CIPHER_MODE_NONE;
}

absl::StatusOr<Handle> open_cipher(const Cipher& cipher, CipherMode mode,
                                   absl::Span<const uint8_t> key) {
  const absl::Status status = use_gcrypt();
  if (!status.ok()) return status;
  const std::optional<int> algorithm = library_cipher(cipher);
  if (!algorithm.has_value()) {
    return absl::UnimplementedError(
        absl::StrCat("cipher '", family_name(cipher.family), "' with a key of ",
                     8 * cipher.key_bytes, " bits"));
  }
  gcry_cipher_hd_t raw = nullptr;
  gcry_error_t error = gcry_cipher_open(&raw, *algorithm, library_mode(mode),
                                        GCRY_CIPHER_SECURE);
  if (error != 0) return gcrypt_status(error, "opening a cipher");
  Handle handle(raw);
  error = gcry_cipher_setkey(raw, key.data(), key.size());
  // A key is weak by chance only, and is used all the same.
  if (error != 0 && gcry_err_code(error) != GPG_ERR_WEAK_KEY)
    return gcrypt_status(error, "setting a key");
  return handle;
}

// Encrypts sector numbers with a hash of the key.
absl::StatusOr<Handle> open_essiv(const SectorCipherSpec& spec,
                                  absl::Span<const uint8_t> key) {
  const Cipher cipher{spec.cipher.family, digest_bytes(spec.iv_hash)};
  if (!library_cipher(cipher).has_value()) {
    return absl::UnimplementedError(
        absl::StrCat("essiv with hash '", hash_name(spec.iv_hash),
                     "': cipher '", family_name(cipher.family),
                     "' has no key of ", 8 * cipher.key_bytes, " bits"));
  }
  absl::StatusOr<Hasher> hasher = Hasher::create(spec.iv_hash);
  if (!hasher.ok()) return hasher.status();
  SecretBytes hashed(cipher.key_bytes);
  hasher->digest(key, hashed.span());
  return open_cipher(cipher, CipherMode::kEcb, hashed.span());
}

}  // namespace

// The library's handles, with the keys set: no thread shares them.
class SectorCipher::State {
 public:
  static absl::StatusOr<std::unique_ptr<State>> create(
      const SectorCipherSpec& spec, absl::Span<const uint8_t> key) {
    auto state = std::unique_ptr<State>(new State(spec.iv_generator));
    absl::StatusOr<Handle> handle = open_cipher(spec.cipher, spec.mode, key);
    if (!handle.ok()) return handle.status();
    state->sectors_ = *std::move(handle);
    if (spec.iv_generator == IvGenerator::kEssiv) {
      handle = open_essiv(spec, key);
      if (!handle.ok()) return handle.status();
      state->numbers_ = *std::move(handle);
    }
    return state;
  }

  // `from` and `to` are the same or do not overlap.
  absl::Status crypt(Direction direction, const uint8_t* from, uint8_t* to,
                     size_t bytes, uint64_t first_sector) {
    // Without vectors the sectors do not differ.
    if (iv_generator_ == IvGenerator::kNone)
      return crypt_run(direction, from, to, bytes);
    for (size_t done = 0; done < bytes; done += kSectorSizeBytes) {
      absl::Status status = start_sector(first_sector++);
      if (status.ok()) {
        status = crypt_run(direction, from + done, to + done, kSectorSizeBytes);
      }
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

 private:
  explicit State(IvGenerator iv_generator) : iv_generator_(iv_generator) {}

  absl::Status start_sector(uint64_t sector) {
    InitialVector vector = {};
    if (iv_generator_ == IvGenerator::kPlain) {
      store_little32(vector.data(), static_cast<uint32_t>(sector));
    } else {
      store_little64(vector.data(), sector);
    }
    gcry_error_t error = 0;
    if (numbers_ != nullptr) {
      error = gcry_cipher_encrypt(numbers_.get(), vector.data(), vector.size(),
                                  nullptr, 0);
    }
    if (error == 0)
      error = gcry_cipher_setiv(sectors_.get(), vector.data(), vector.size());
    return error == 0 ? absl::OkStatus()
                      : gcrypt_status(error, "setting a sector's vector");
  }

  absl::Status crypt_run(Direction direction, const uint8_t* from, uint8_t* to,
                         size_t bytes) {
    // In place is asked for by no input at all.
    const uint8_t* const input = from == to ? nullptr : from;
    const size_t input_bytes = from == to ? 0 : bytes;
    const gcry_error_t error =
        direction == Direction::kEncrypt
            ? gcry_cipher_encrypt(sectors_.get(), to, bytes, input, input_bytes)
            : gcry_cipher_decrypt(sectors_.get(), to, bytes, input,
                                  input_bytes);
    return error == 0 ? absl::OkStatus()
                      : gcrypt_status(error, "running a cipher");
  }

  const IvGenerator iv_generator_;
  Handle sectors_;
  Handle numbers_;  // of kEssiv
};

class SectorCipher::Lease {
 public:
  Lease(const SectorCipher* cipher, std::unique_ptr<State> state)
      : cipher_(cipher), state_(std::move(state)) {}
  Lease(Lease&&) = default;
  Lease& operator=(Lease&&) = delete;
  ~Lease() {
    if (state_ != nullptr) cipher_->give_back(std::move(state_));
  }
  State* operator->() const { return state_.get(); }

 private:
  const SectorCipher* const cipher_;
  std::unique_ptr<State> state_;
};

SectorCipher::SectorCipher(const SectorCipherSpec& spec,
                           absl::Span<const uint8_t> key)
    : spec_(spec), key_(SecretBytes::copy_of(key)) {}

SectorCipher::~SectorCipher() {
  for (std::atomic<State*>& slot : idle_) delete slot.load();
}

absl::StatusOr<std::unique_ptr<SectorCipher>> SectorCipher::create(
    const SectorCipherSpec& spec, absl::Span<const uint8_t> key) {
  if (key.size() != spec.key_bytes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the key of ", cipher_name(spec.cipher), "-", mode_name(spec.mode),
        " has ", spec.key_bytes(), " bytes, not ", key.size()));
  }
  SectorCipherSpec used = spec;
  if (spec.mode == CipherMode::kEcb) used.iv_generator = IvGenerator::kNone;
  if (used.mode != CipherMode::kEcb &&
      used.iv_generator == IvGenerator::kNone) {
    return absl::InvalidArgumentError(absl::StrCat(
        "mode '", mode_name(spec.mode), "' needs an initialisation vector"));
  }
  auto cipher = std::unique_ptr<SectorCipher>(new SectorCipher(used, key));
  // The first state also shows that there can be any.
  const absl::StatusOr<Lease> first = cipher->lease();
  if (!first.ok()) return first.status();
  return cipher;
}

absl::StatusOr<SectorCipher::Lease> SectorCipher::lease() const {
  const size_t start = thread_shard();
  for (size_t i = 0; i < kStatesKept; ++i) {
    std::atomic<State*>& slot = idle_[(start + i) % kStatesKept];
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    State* const state = slot.exchange(nullptr, std::memory_order_acquire);
    if (state != nullptr) return Lease(this, std::unique_ptr<State>(state));
  }
  absl::StatusOr<std::unique_ptr<State>> state =
      State::create(spec_, key_.span());
  if (!state.ok()) return state.status();
  return Lease(this, *std::move(state));
}

void SectorCipher::give_back(std::unique_ptr<State> state) const {
  const size_t start = thread_shard();
  for (size_t i = 0; i < kStatesKept; ++i) {
    State* expected = nullptr;
    if (idle_[(start + i) % kStatesKept].compare_exchange_strong(
            expected, state.get(), std::memory_order_release,
            std::memory_order_relaxed)) {
      static_cast<void>(state.release());
      return;
    }
  }
}

absl::Status SectorCipher::encrypt(const IoVector& plain, uint64_t first_sector,
                                   uint8_t* to) const {
  ABSL_ASSERT(is_aligned(plain.length_bytes(), kSectorSizeBytes));
  const absl::StatusOr<Lease> state = lease();
  if (!state.ok()) return state.status();
  uint64_t done = 0;
  while (done < plain.length_bytes()) {
    iovec segment = {};
    plain.export_segments(done, plain.length_bytes(),
                          absl::MakeSpan(&segment, 1));
    uint64_t bytes = align_down(segment.iov_len, kSectorSizeBytes);
    const auto* from = static_cast<const uint8_t*>(segment.iov_base);
    if (bytes == 0) {
      // A sector in several segments.
      bytes = kSectorSizeBytes;
      plain.copy_to(done, to + done, bytes);
      from = to + done;
    }
    const absl::Status status =
        (*state)->crypt(Direction::kEncrypt, from, to + done, bytes,
                        first_sector + done / kSectorSizeBytes);
    if (!status.ok()) return status;
    done += bytes;
  }
  return absl::OkStatus();
}

absl::Status SectorCipher::decrypt(const IoVector& in_place,
                                   uint64_t first_sector) const {
  ABSL_ASSERT(is_aligned(in_place.length_bytes(), kSectorSizeBytes));
  const absl::StatusOr<Lease> state = lease();
  if (!state.ok()) return state.status();
  uint64_t done = 0;
  while (done < in_place.length_bytes()) {
    iovec segment = {};
    in_place.export_segments(done, in_place.length_bytes(),
                             absl::MakeSpan(&segment, 1));
    uint64_t bytes = align_down(segment.iov_len, kSectorSizeBytes);
    std::array<uint8_t, kSectorSizeBytes> split;
    auto* at = static_cast<uint8_t*>(segment.iov_base);
    const bool is_split = bytes == 0;
    if (is_split) {
      bytes = kSectorSizeBytes;
      at = split.data();
      in_place.copy_to(done, at, bytes);
    }
    const absl::Status status =
        (*state)->crypt(Direction::kDecrypt, at, at, bytes,
                        first_sector + done / kSectorSizeBytes);
    if (!status.ok()) return status;
    if (is_split) in_place.copy_from(done, at, bytes);
    done += bytes;
  }
  return absl::OkStatus();
}

}  // namespace spindle::crypto

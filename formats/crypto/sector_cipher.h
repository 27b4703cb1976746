// SectorCipher: encrypts and decrypts runs of 512-byte sectors, each by itself,
// with an initialisation vector that its number gives.
//
// What the number counts is the caller's business: LUKS counts from the start
// of the payload, LUKS in qcow2 where a cluster lies in the file, the old AES
// of qcow and qcow2 where the guest has it.
//
// Thread safety: any thread may call any method at any time; calls do not wait
// for each other.  Each running call has a cipher state of its own, ready with
// its keys; states that are idle are kept for the next.
#ifndef SPINDLE_FORMATS_CRYPTO_SECTOR_CIPHER_H_
#define SPINDLE_FORMATS_CRYPTO_SECTOR_CIPHER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/io_vector.h"
#include "engine/secret_bytes.h"
#include "formats/crypto/algorithms.h"

namespace spindle::crypto {

class SectorCipher {
 public:
  // Copies `key`.
  // Errors: kInvalidArgument if its length is not spec.key_bytes();
  // kUnimplemented for what the library does not have (twofish-192), and for
  // essiv with a hash whose length is no key's length.
  static absl::StatusOr<std::unique_ptr<SectorCipher>> create(
      const SectorCipherSpec& spec, absl::Span<const uint8_t> key);

  SectorCipher(const SectorCipher&) = delete;
  SectorCipher& operator=(const SectorCipher&) = delete;
  // REQUIRES: no call is in progress.
  ~SectorCipher();

  const SectorCipherSpec& spec() const { return spec_; }

  // From `plain`, which does not change, to `to`.
  // REQUIRES: plain.length_bytes() is a multiple of 512.
  absl::Status encrypt(const IoVector& plain, uint64_t first_sector,
                       uint8_t* to) const;
  // Where it lies; segments may be of any length.
  // REQUIRES: in_place.length_bytes() is a multiple of 512.
  absl::Status decrypt(const IoVector& in_place, uint64_t first_sector) const;

 private:
  enum class Direction { kEncrypt, kDecrypt };
  class State;
  class Lease;

  // More than that many calls at one time make states of their own.
  static constexpr size_t kStatesKept = 64;

  SectorCipher(const SectorCipherSpec& spec, absl::Span<const uint8_t> key);

  absl::StatusOr<Lease> lease() const;
  void give_back(std::unique_ptr<State> state) const;

  const SectorCipherSpec spec_;
  const SecretBytes key_;
  // What is idle; null where there is none.
  mutable std::array<std::atomic<State*>, kStatesKept> idle_ = {};
};

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_SECTOR_CIPHER_H_

// The anti-forensic splitter (LUKS on-disk format 1.2.3, section 2.4): a key
// becomes many stripes, all of which are needed to have it back, so that
// overwriting any part of them destroys it.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_CRYPTO_ANTI_FORENSIC_H_
#define SPINDLE_FORMATS_CRYPTO_ANTI_FORENSIC_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/secret_bytes.h"
#include "formats/crypto/algorithms.h"

namespace spindle::crypto {

// `stripes` times as long as `key`.  REQUIRES: stripes > 0, !key.empty().
absl::StatusOr<SecretBytes> split_key(Hash hash, absl::Span<const uint8_t> key,
                                      size_t stripes);

// The opposite.  REQUIRES: material.size() is a multiple of `stripes`.
absl::StatusOr<SecretBytes> merge_key(Hash hash,
                                      absl::Span<const uint8_t> material,
                                      size_t stripes);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_ANTI_FORENSIC_H_

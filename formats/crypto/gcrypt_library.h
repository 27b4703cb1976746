// libgcrypt, made ready: its states of ciphers and hashes live in secret memory
// (engine/secret_memory.h), unless the process set it up before us.
//
// Thread safety: any thread.
#ifndef SPINDLE_FORMATS_CRYPTO_GCRYPT_LIBRARY_H_
#define SPINDLE_FORMATS_CRYPTO_GCRYPT_LIBRARY_H_

#include <gcrypt.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace spindle::crypto {

// To be called before anything else of the library; cheap after the first time.
absl::Status use_gcrypt();

// kInternal (kResourceExhausted where memory ran out) with the library's text.
absl::Status gcrypt_status(gcry_error_t error, absl::string_view what);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_GCRYPT_LIBRARY_H_

// The options that say how an image is encrypted, under QEMU's names: those
// that qcow and qcow2 share, and how a passphrase is found.
//
// Thread safety: pure functions.
#ifndef SPINDLE_FORMATS_CRYPTO_ENCRYPT_OPTIONS_H_
#define SPINDLE_FORMATS_CRYPTO_ENCRYPT_OPTIONS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/format.h"
#include "engine/secret_bytes.h"
#include "engine/secret_store.h"

namespace spindle::crypto {

inline constexpr absl::string_view kEncryptPrefix = "encrypt.";
// Of creation only: says "aes", or nothing.
inline constexpr char kOldOption[] = "encryption";
inline constexpr absl::string_view kFormatAes = "aes";
inline constexpr absl::string_view kFormatLuks = "luks";

// The secret whose id is the value of the option `name`.
// Errors: kInvalidArgument if the option is missing, kNotFound.
absl::StatusOr<std::shared_ptr<const SecretBytes>> find_secret(
    const OptionMap& options, absl::string_view name,
    const SecretStore* secrets);

// True for the options that find_open_secret() reads: "encrypt.format" and
// "encrypt.key-secret".
bool is_open_option(absl::string_view name);

// The passphrase of an image whose header says that it is encrypted as
// `format` says, by the options of its opening.  Null if `format` is empty: the
// image is not encrypted.
// Errors: kInvalidArgument if the options state another format, or no secret;
// kNotFound.
absl::StatusOr<std::shared_ptr<const SecretBytes>> find_open_secret(
    const OptionMap& options, absl::string_view format,
    const SecretStore* secrets);

// How a new image shall be encrypted: the value of "encrypt.format", or "aes"
// for its old name "encryption=on"; empty for none.  Whether the format has
// such an encryption is for its caller to say.
// Errors: kInvalidArgument if the options contradict each other, or lack that
// one, or have some that "aes" does not know.
absl::StatusOr<std::string> find_create_format(const OptionMap& options);

}  // namespace spindle::crypto

#endif  // SPINDLE_FORMATS_CRYPTO_ENCRYPT_OPTIONS_H_

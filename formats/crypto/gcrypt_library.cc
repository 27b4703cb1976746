#include "formats/crypto/gcrypt_library.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/secret_memory.h"

namespace spindle::crypto {
namespace {

// What the code is written for; older ones lack XTS.
constexpr char kOldestVersion[] = "1.10.0";

void* allocate(size_t size_bytes) { return std::malloc(size_bytes); }

void release(void* memory) {
  if (is_secret(memory)) {
    free_secret(memory);
  } else {
    std::free(memory);
  }
}

int is_secure(const void* memory) { return is_secret(memory) ? 1 : 0; }

void* reallocate(void* memory, size_t size_bytes) {
  if (!is_secret(memory)) return std::realloc(memory, size_bytes);
  void* const larger = allocate_secret(size_bytes);
  if (larger == nullptr) return nullptr;
  std::memcpy(larger, memory, std::min(size_bytes, secret_size_bytes(memory)));
  free_secret(memory);
  return larger;
}

absl::Status start() {
  const bool is_ours = gcry_control(GCRYCTL_ANY_INITIALIZATION_P) == 0;
  if (is_ours) {
    gcry_set_allocation_handler(allocate, allocate_secret, is_secure,
                                reallocate, release);
  }
  if (gcry_check_version(kOldestVersion) == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("libgcrypt is version ", gcry_check_version(nullptr),
                     "; the oldest that will do is ", kOldestVersion));
  }
  if (gcry_control(GCRYCTL_INITIALIZATION_FINISHED_P) == 0) {
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status use_gcrypt() {
  static const auto* const status = new absl::Status(start());
  return *status;
}

absl::Status gcrypt_status(gcry_error_t error, absl::string_view what) {
  const std::string message =
      absl::StrCat(what, ": libgcrypt: ", gcry_strerror(error));
  return gcry_err_code(error) == GPG_ERR_ENOMEM
             ? absl::ResourceExhaustedError(message)
             : absl::InternalError(message);
}

}  // namespace spindle::crypto

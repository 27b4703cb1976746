// SecretStore: the secrets that an embedder hands over, by the names that
// options refer to ("key-secret=sec0").
//
// Filled before it is used, and then shared: formats keep what they need of it
// for as long as they need it, and look up nothing by themselves.
//
// Thread safety: const methods from any thread; the others before that.
#ifndef SPINDLE_ENGINE_SECRET_STORE_H_
#define SPINDLE_ENGINE_SECRET_STORE_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/secret_bytes.h"

namespace spindle {

class SecretStore {
 public:
  // The longest secret.
  static constexpr size_t kMaxSecretBytes = size_t{8} << 20;

  // Errors: kInvalidArgument for a bad or empty id, kAlreadyExists.
  absl::Status add(const std::string& id, SecretBytes secret);

  // A secret as QEMU's tools take it:
  // "secret,id=ID,data=TEXT|file=NAME|env=NAME[,format=raw|base64]", with ",,"
  // for a comma in a value.  A file is taken whole; a newline at its end
  // counts.  env= is Spindle's own: the variable's value.
  // Errors: kInvalidArgument, kNotFound, kUnimplemented for encrypted secrets
  // (keyid=, iv=); what reading the file gives.  No message holds a secret.
  absl::Status add_object(absl::string_view text);

  // Errors: kNotFound.
  absl::StatusOr<std::shared_ptr<const SecretBytes>> find(
      absl::string_view id) const;

 private:
  // Whether add() takes it.
  absl::Status check_id(const std::string& id) const;

  std::map<std::string, std::shared_ptr<const SecretBytes>, std::less<>>
      secrets_;
};

}  // namespace spindle

#endif  // SPINDLE_ENGINE_SECRET_STORE_H_

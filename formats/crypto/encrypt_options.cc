#include "formats/crypto/encrypt_options.h"

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/option_values.h"

namespace spindle::crypto {
namespace {

constexpr char kFormatOption[] = "encrypt.format";
constexpr char kSecretOption[] = "encrypt.key-secret";

}  // namespace

absl::StatusOr<std::shared_ptr<const SecretBytes>> find_secret(
    const OptionMap& options, absl::string_view name,
    const SecretStore* secrets) {
  const auto given = options.find(std::string(name));
  if (given == options.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Parameter '", name, "' is required for cipher"));
  }
  if (secrets == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("No secret with id '", given->second, "'"));
  }
  return secrets->find(given->second);
}

bool is_open_option(absl::string_view name) {
  return name == kFormatOption || name == kSecretOption;
}

absl::StatusOr<std::shared_ptr<const SecretBytes>> find_open_secret(
    const OptionMap& options, absl::string_view format,
    const SecretStore* secrets) {
  const auto stated = options.find(kFormatOption);
  if (stated != options.end() && stated->second != format) {
    return absl::InvalidArgumentError(
        format.empty()
            ? absl::StrCat("No encryption in image header, but options "
                           "specified format '",
                           stated->second, "'")
            : absl::StrCat("Header reported '", format,
                           "' encryption format but options specify '",
                           stated->second, "'"));
  }
  if (format.empty()) return nullptr;
  return find_secret(options, kSecretOption, secrets);
}

absl::StatusOr<std::string> find_create_format(const OptionMap& options) {
  const auto stated = options.find(kFormatOption);
  std::string format = stated == options.end() ? "" : stated->second;
  if (const auto old = options.find(kOldOption); old != options.end()) {
    const absl::StatusOr<bool> on = parse_bool_option(kOldOption, old->second);
    if (!on.ok()) return on.status();
    if (*on && stated != options.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", kFormatOption, "' and its alias '", kOldOption,
                       "' can't be used at the same time"));
    }
    if (*on) format = kFormatAes;
  }
  for (const auto& [name, value] : options) {
    if (!absl::StartsWith(name, kEncryptPrefix)) continue;
    if (format.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Parameter '", kFormatOption, "' is missing"));
    }
    if (format == kFormatAes && !is_open_option(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("Parameter '", name, "' is unexpected"));
    }
  }
  return format;
}

}  // namespace spindle::crypto

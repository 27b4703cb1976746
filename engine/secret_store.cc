#include "engine/secret_store.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/secret_memory.h"

namespace spindle {
namespace {

using Properties = std::map<std::string, std::string>;

// Strings that may have held a secret do not stay behind.
void wipe_all(Properties* properties) {
  for (auto& [name, value] : *properties) wipe(value.data(), value.size());
}

// One "name=value" up to a single comma; ",," stands for one in the value.
std::string take_item(absl::string_view* text) {
  std::string item;
  item.reserve(text->size());  // no copy is left behind by growing
  while (!text->empty()) {
    const char c = text->front();
    text->remove_prefix(1);
    if (c == ',') {
      if (text->empty() || text->front() != ',') break;
      text->remove_prefix(1);
    }
    item.push_back(c);
  }
  return item;
}

absl::StatusOr<Properties> parse_properties(absl::string_view text) {
  std::string type = take_item(&text);
  if (type != "secret" && type != "qom-type=secret") {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("object type '", type.substr(0, type.find('=')),
                         "' is not known; known is 'secret'")),
        absl::StrCat("Parameter 'qom-type' does not accept value '", type,
                     "'"));
  }
  Properties properties;
  while (!text.empty()) {
    std::string item = take_item(&text);
    const size_t equals = item.find('=');
    const std::string name = item.substr(0, equals);
    if (equals == std::string::npos) {
      wipe(item.data(), item.size());
      wipe_all(&properties);
      // Without its text, which may be a part of the secret.
      return absl::InvalidArgumentError(
          "a property of a secret object has no value");
    }
    properties[name] = item.substr(equals + 1);
    wipe(item.data(), item.size());
  }
  return properties;
}

// The checks come in the order of QEMU's: of several mistakes, both name the
// same.
absl::Status check_names(const Properties& properties) {
  if (properties.count("id") == 0) {
    return with_qemu_words(
        absl::InvalidArgumentError("a secret has no property 'id'"),
        "Parameter 'id' is missing");
  }
  const auto format = properties.find("format");
  if (format != properties.end() && format->second != "raw" &&
      format->second != "base64") {
    return with_qemu_words(
        absl::InvalidArgumentError(
            absl::StrCat("format '", format->second,
                         "' of a secret is neither 'raw' nor 'base64'")),
        absl::StrCat("Parameter 'format' does not accept value '",
                     format->second, "'"));
  }
  for (const auto& [name, value] : properties) {
    if (name == "keyid" || name == "iv") {
      return absl::UnimplementedError(
          absl::StrCat("property '", name, "' of a secret: encrypted secrets"));
    }
    if (name != "id" && name != "data" && name != "file" && name != "env" &&
        name != "format") {
      return with_qemu_words(
          absl::InvalidArgumentError(
              absl::StrCat("a secret has no property '", name, "'")),
          absl::StrCat("Parameter '", name, "' is unexpected"));
    }
  }
  return absl::OkStatus();
}

absl::Status check_sources(const Properties& properties) {
  const size_t sources = properties.count("data") + properties.count("file") +
                         properties.count("env");
  if (sources == 1) return absl::OkStatus();
  return with_qemu_words(
      absl::InvalidArgumentError(absl::StrCat(
          "a secret has one of the properties 'data', 'file' and 'env', not ",
          sources, " of them")),
      sources == 0 ? "Either 'file' or 'data' must be provided"
                   : "'file' and 'data' are mutually exclusive");
}

absl::StatusOr<SecretBytes> read_whole(const std::string& filename) {
  const int fd = open(filename.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const absl::Status status =
        errno_status(errno, absl::StrCat("secret: open '", filename, "'"));
    return with_qemu_words(
        status, absl::StrCat("Unable to read ", filename,
                             ": Failed to open file \u201c", filename,
                             "\u201d: ", std::strerror(errno_for(status))));
  }
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  SecretBytes bytes(SecretStore::kMaxSecretBytes + 1);
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = read(fd, bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      return errno_status(errno, absl::StrCat("secret: read '", filename, "'"));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  if (done > SecretStore::kMaxSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("secret file '", filename, "' is longer than ",
                     SecretStore::kMaxSecretBytes, " bytes"));
  }
  return SecretBytes::copy_of(absl::MakeConstSpan(bytes.data(), done));
}

absl::StatusOr<SecretBytes> load(const Properties& properties) {
  if (const auto data = properties.find("data"); data != properties.end())
    return SecretBytes::copy_of(data->second);
  if (const auto file = properties.find("file"); file != properties.end())
    return read_whole(file->second);
  const std::string& name = properties.at("env");
  const char* const value = std::getenv(name.c_str());
  if (value == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("secret: the environment has no variable '", name, "'"));
  }
  return SecretBytes::copy_of(value);
}

absl::StatusOr<SecretBytes> decode_base64(const SecretBytes& raw) {
  std::string decoded;
  decoded.reserve(raw.size());
  const bool good = absl::Base64Unescape(
      {reinterpret_cast<const char*>(raw.data()), raw.size()}, &decoded);
  SecretBytes result;
  if (good) result = SecretBytes::copy_of(decoded);
  wipe(decoded.data(), decoded.size());
  if (!good) {
    return with_qemu_words(
        absl::InvalidArgumentError("a secret is not valid base64"),
        "Base64 data contains invalid characters");
  }
  return result;
}

}  // namespace

absl::Status SecretStore::check_id(const std::string& id) const {
  if (id.empty() || !absl::ascii_isalpha(static_cast<unsigned char>(id[0]))) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrCat(
            "id '", id, "' of a secret does not begin with a letter")),
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with "
        "a letter.");
  }
  if (secrets_.count(id) == 0) return absl::OkStatus();
  return with_qemu_words(absl::AlreadyExistsError(absl::StrCat(
                             "there is a secret '", id, "' already")),
                         absl::StrCat("attempt to add duplicate property '", id,
                                      "' to object (type 'container')"));
}

absl::Status SecretStore::add(const std::string& id, SecretBytes secret) {
  absl::Status status = check_id(id);
  if (!status.ok()) return status;
  if (secret.size() > kMaxSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("secret '", id, "' has ", secret.size(),
                     " bytes; the limit is ", kMaxSecretBytes));
  }
  secrets_.emplace(id, std::make_shared<const SecretBytes>(std::move(secret)));
  return status;
}

absl::Status SecretStore::add_object(absl::string_view text) {
  absl::StatusOr<Properties> properties = parse_properties(text);
  if (!properties.ok()) return properties.status();
  const auto wiper = absl::MakeCleanup([&] { wipe_all(&*properties); });
  absl::Status status = check_names(*properties);
  if (!status.ok()) return status;
  const std::string& id = properties->at("id");
  status = check_id(id);
  if (status.ok()) status = check_sources(*properties);
  if (!status.ok()) return status;
  absl::StatusOr<SecretBytes> secret = load(*properties);
  if (!secret.ok()) return secret.status();
  const auto format = properties->find("format");
  if (format != properties->end() && format->second == "base64")
    secret = decode_base64(*secret);
  if (!secret.ok())
    return with_context(secret.status(), absl::StrCat("secret '", id, "'"));
  return add(id, *std::move(secret));
}

absl::StatusOr<std::shared_ptr<const SecretBytes>> SecretStore::find(
    absl::string_view id) const {
  const auto found = secrets_.find(id);
  if (found != secrets_.end()) return found->second;
  return absl::NotFoundError(absl::StrCat("No secret with id '", id, "'"));
}

}  // namespace spindle

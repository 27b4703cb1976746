#include "formats/luks/create.h"

#include <array>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/option_values.h"
#include "engine/sector.h"
#include "formats/crypto/algorithms.h"
#include "formats/crypto/key_derivation.h"
#include "formats/crypto/sector_cipher.h"

namespace spindle::luks {
namespace {

constexpr absl::string_view kDefaultIterTime = "2000";
// An hour: longer would be a mistake.
constexpr uint64_t kMaxIterTimeMs = 3'600'000;
// The digest of the key takes this part of a slot's time, as in QEMU.
constexpr int kDigestPart = 8;

// Reads options of one prefix.
class Options {
 public:
  Options(const OptionMap& options, absl::string_view prefix)
      : options_(options), prefix_(prefix) {}

  const std::string* find(absl::string_view name) const {
    const auto found = options_.find(absl::StrCat(prefix_, name));
    return found == options_.end() ? nullptr : &found->second;
  }

  // What `parse` makes of the option, or `otherwise` if it is not given.
  template <typename Value>
  absl::StatusOr<Value> get(absl::string_view name,
                            std::optional<Value> (*parse)(absl::string_view),
                            Value otherwise) const {
    const std::string* const text = find(name);
    if (text == nullptr) return otherwise;
    const std::optional<Value> value = parse(*text);
    if (value.has_value()) return *value;
    return absl::InvalidArgumentError(absl::StrCat(
        "Invalid parameter '", *text, "' of option '", prefix_, name, "'"));
  }

 private:
  const OptionMap& options_;
  const absl::string_view prefix_;
};

absl::Status read_algorithms(const Options& options, Header* header) {
  const auto cipher =
      options.get("cipher-alg", crypto::parse_cipher, crypto::Cipher());
  if (!cipher.ok()) return cipher.status();
  const auto mode =
      options.get("cipher-mode", crypto::parse_mode, crypto::CipherMode::kXts);
  if (!mode.ok()) return mode.status();
  const auto generator = options.get("ivgen-alg", crypto::parse_iv_generator,
                                     crypto::IvGenerator::kPlain64);
  if (!generator.ok()) return generator.status();
  const auto iv_hash =
      options.get("ivgen-hash-alg", crypto::parse_hash, crypto::Hash::kSha256);
  if (!iv_hash.ok()) return iv_hash.status();
  const auto hash =
      options.get("hash-alg", crypto::parse_hash, crypto::Hash::kSha256);
  if (!hash.ok()) return hash.status();
  header->spec = {*cipher, *mode, *generator, *iv_hash};
  header->hash = *hash;
  header->mode = absl::StrCat(crypto::mode_name(*mode), "-",
                              crypto::iv_generator_name(*generator));
  if (*generator == crypto::IvGenerator::kEssiv ||
      options.find("ivgen-hash-alg") != nullptr)
    absl::StrAppend(&header->mode, ":", crypto::hash_name(*iv_hash));
  // Whether there is such a cipher shows now, not when a file is gone.
  const SecretBytes any_key(header->spec.key_bytes());
  return crypto::SectorCipher::create(header->spec, any_key.span()).status();
}

// RFC 4122, version 4.
absl::StatusOr<std::string> new_uuid() {
  std::array<uint8_t, 16> bytes;
  const absl::Status status = crypto::fill_random(absl::MakeSpan(bytes));
  if (!status.ok()) return status;
  bytes[6] = static_cast<uint8_t>((bytes[6] & 0x0f) | 0x40);
  bytes[8] = static_cast<uint8_t>((bytes[8] & 0x3f) | 0x80);
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    absl::StrAppendFormat(&text, "%02x", bytes[i]);
  }
  return text;
}

}  // namespace

uint64_t CreatePlan::header_area_bytes() const {
  return uint64_t{header.payload_sector} * kSectorSizeBytes;
}

absl::StatusOr<CreatePlan> plan_create(const OptionMap& all,
                                       absl::string_view prefix) {
  const Options options(all, prefix);
  CreatePlan plan;
  absl::Status status = read_algorithms(options, &plan.header);
  if (!status.ok()) return status;
  const absl::StatusOr<absl::Duration> time = find_iter_time(all, prefix);
  if (!time.ok()) return time.status();
  plan.iter_time = *time;
  if (const std::string* const secret = options.find("key-secret"))
    plan.key_secret = *secret;
  place_slots(&plan.header);
  return plan;
}

absl::StatusOr<SecretBytes> write_volume(const HeaderArea& area,
                                         const CreatePlan& plan,
                                         absl::Span<const uint8_t> passphrase,
                                         Header* header) {
  *header = plan.header;
  absl::StatusOr<std::string> uuid = new_uuid();
  if (!uuid.ok()) return uuid.status();
  header->uuid = *std::move(uuid);
  SecretBytes key(header->key_bytes());
  absl::Status status = crypto::fill_random(key.span());
  if (status.ok())
    status = set_key_digest(header, key, plan.iter_time / kDigestPart);
  if (!status.ok()) return status;
  const absl::StatusOr<FilledSlot> filled =
      prepare_slot(*header, 0, passphrase, key, plan.iter_time);
  if (!filled.ok()) return filled.status();
  status = write_slot(area, header, *filled);
  // What lies between the slots reads as zeroes, to the end.
  if (status.ok()) {
    status = area.channel->set_length(
        area.offset_bytes + plan.header_area_bytes(), SetLengthMode::kGrowOnly);
  }
  if (status.ok()) {
    status = area.channel->write(Purpose::kHeaderUpdate,
                                 serialise_header(*header).data(), kHeaderBytes,
                                 area.offset_bytes);
  }
  if (status.ok()) status = area.channel->flush();
  if (!status.ok()) return status;
  return key;
}

std::vector<OptionHelp> create_options() {
  return {
      {"cipher-alg", "<str>", "Name of encryption cipher algorithm"},
      {"cipher-mode", "<str>", "Name of encryption cipher mode"},
      {"hash-alg", "<str>", "Name of encryption hash algorithm"},
      {"iter-time", "<num>", "Time to spend in PBKDF in milliseconds"},
      {"ivgen-alg", "<str>", "Name of IV generator algorithm"},
      {"ivgen-hash-alg", "<str>", "Name of IV generator hash algorithm"},
      {"key-secret", "<str>",
       "ID of the secret that provides the keyslot passphrase"},
      {"size", "<size>", "Virtual disk size"},
  };
}

absl::StatusOr<absl::Duration> find_iter_time(const OptionMap& options,
                                              absl::string_view prefix) {
  const std::string name = absl::StrCat(prefix, "iter-time");
  const auto given = options.find(name);
  const absl::StatusOr<uint64_t> milliseconds = parse_number_option(
      name, given == options.end() ? kDefaultIterTime : given->second);
  if (!milliseconds.ok()) return milliseconds.status();
  if (*milliseconds > kMaxIterTimeMs) {
    return absl::InvalidArgumentError(
        absl::StrCat("option '", name, "' is ", *milliseconds,
                     " ms; the limit is ", kMaxIterTimeMs));
  }
  return absl::Milliseconds(static_cast<int64_t>(*milliseconds));
}

}  // namespace spindle::luks

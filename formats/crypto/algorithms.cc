#include "formats/crypto/algorithms.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace spindle::crypto {
namespace {

template <typename Value>
struct Named {
  Value value;
  absl::string_view name;
};

constexpr Named<CipherFamily> kFamilies[] = {
    {CipherFamily::kAes, "aes"},
    {CipherFamily::kSerpent, "serpent"},
    {CipherFamily::kTwofish, "twofish"},
};
constexpr Named<CipherMode> kModes[] = {
    {CipherMode::kEcb, "ecb"},
    {CipherMode::kCbc, "cbc"},
    {CipherMode::kXts, "xts"},
};
constexpr Named<IvGenerator> kIvGenerators[] = {
    {IvGenerator::kPlain, "plain"},
    {IvGenerator::kPlain64, "plain64"},
    {IvGenerator::kEssiv, "essiv"},
};
constexpr Named<Hash> kHashes[] = {
    {Hash::kSha1, "sha1"},     {Hash::kSha224, "sha224"},
    {Hash::kSha256, "sha256"}, {Hash::kSha384, "sha384"},
    {Hash::kSha512, "sha512"}, {Hash::kRipemd160, "ripemd160"},
};

template <typename Value, size_t kCount>
absl::string_view name_in(const Named<Value> (&list)[kCount], Value value) {
  for (const Named<Value>& entry : list) {
    if (entry.value == value) return entry.name;
  }
  return "none";
}

template <typename Value, size_t kCount>
std::optional<Value> find_in(const Named<Value> (&list)[kCount],
                             absl::string_view name) {
  for (const Named<Value>& entry : list) {
    if (entry.name == name) return entry.value;
  }
  return std::nullopt;
}

}  // namespace

size_t digest_bytes(Hash hash) {
  switch (hash) {
    case Hash::kSha1:
    case Hash::kRipemd160:
      return 20;
    case Hash::kSha224:
      return 28;
    case Hash::kSha256:
      return 32;
    case Hash::kSha384:
      return 48;
    case Hash::kSha512:
      return 64;
  }
  return kMaxDigestBytes;
}

absl::string_view family_name(CipherFamily family) {
  return name_in(kFamilies, family);
}
std::optional<CipherFamily> parse_family(absl::string_view name) {
  return find_in(kFamilies, name);
}

std::string cipher_name(const Cipher& cipher) {
  return absl::StrCat(family_name(cipher.family), "-", 8 * cipher.key_bytes);
}

std::optional<Cipher> parse_cipher(absl::string_view name) {
  for (const Named<CipherFamily>& family : kFamilies) {
    for (const size_t key_bytes : {16, 24, 32}) {
      const Cipher cipher{family.value, key_bytes};
      if (cipher_name(cipher) == name) return cipher;
    }
  }
  return std::nullopt;
}

absl::string_view mode_name(CipherMode mode) { return name_in(kModes, mode); }
std::optional<CipherMode> parse_mode(absl::string_view name) {
  return find_in(kModes, name);
}

absl::string_view iv_generator_name(IvGenerator generator) {
  return name_in(kIvGenerators, generator);
}
std::optional<IvGenerator> parse_iv_generator(absl::string_view name) {
  return find_in(kIvGenerators, name);
}

absl::string_view hash_name(Hash hash) { return name_in(kHashes, hash); }
std::optional<Hash> parse_hash(absl::string_view name) {
  return find_in(kHashes, name);
}

}  // namespace spindle::crypto

#include "formats/crypto/key_derivation.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "formats/crypto/anti_forensic.h"
#include "gtest/gtest.h"

namespace spindle::crypto {
namespace {

absl::Span<const uint8_t> bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
std::string hex(absl::Span<const uint8_t> data) {
  return absl::BytesToHexString(
      {reinterpret_cast<const char*>(data.data()), data.size()});
}

std::string hash_of(Hash hash, absl::string_view text) {
  auto hasher = Hasher::create(hash);
  if (!hasher.ok()) return std::string(hasher.status().message());
  std::string out(hasher->digest_bytes(), '\0');
  const absl::Span<uint8_t> span(reinterpret_cast<uint8_t*>(out.data()),
                                 out.size());
  // What came before does not matter.
  hasher->digest(bytes("something else"), span);
  hasher->digest(bytes(text), span);
  return absl::BytesToHexString(out);
}

// FIPS 180-4 examples, and those of RIPEMD-160's authors.
TEST(Hasher, PublishedDigests) {
  EXPECT_EQ(hash_of(Hash::kSha1, "abc"),
            "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(hash_of(Hash::kSha224, "abc"),
            "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7");
  EXPECT_EQ(hash_of(Hash::kSha256, "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of(Hash::kSha384, "abc"),
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed"
            "8086072ba1e7cc2358baeca134c825a7");
  EXPECT_EQ(hash_of(Hash::kSha512, "abc"),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
  EXPECT_EQ(hash_of(Hash::kRipemd160, "abc"),
            "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc");
}

std::string derived(Hash hash, absl::string_view passphrase,
                    absl::string_view salt, uint32_t iterations,
                    size_t length) {
  const auto key =
      derive_key(hash, bytes(passphrase), bytes(salt), iterations, length);
  return key.ok() ? hex(key->span()) : std::string(key.status().message());
}

// RFC 6070, and the widely published ones for SHA-2.
TEST(DeriveKey, PublishedVectors) {
  EXPECT_EQ(derived(Hash::kSha1, "password", "salt", 1, 20),
            "0c60c80f961f0e71f3a9b524af6012062fe037a6");
  EXPECT_EQ(derived(Hash::kSha1, "password", "salt", 4096, 20),
            "4b007901b765489abead49d926f721d065a429c1");
  EXPECT_EQ(derived(Hash::kSha1, "passwordPASSWORDpassword",
                    "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, 25),
            "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
  EXPECT_EQ(derived(Hash::kSha256, "password", "salt", 1, 32),
            "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987cb70be17b");
  EXPECT_EQ(derived(Hash::kSha512, "password", "salt", 1, 64),
            "867f70cf1ade02cff3752599a3a53dc4af34c7a669815ae5d513554e1c8cf252"
            "c02d470a285a0501bad999bfe943c08f050235d7d68b1da55e63f73b60a57fce");
}

TEST(DeriveKey, AnEmptyPassphraseIsOne) {
  const auto key = derive_key(Hash::kSha256, {}, bytes("salt"), 10, 32);
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(key->size(), 32U);
}

TEST(MeasureIterations, GrowsWithTheTime) {
  const auto one = measure_iterations(Hash::kSha256, 32, absl::Seconds(1));
  const auto ten = measure_iterations(Hash::kSha256, 32, absl::Seconds(10));
  ASSERT_TRUE(one.ok() && ten.ok());
  EXPECT_GT(*one, 1000U);
  EXPECT_GT(*ten, 2 * *one);
}

TEST(AntiForensic, MergeUndoesSplit) {
  for (const Hash hash : {Hash::kSha1, Hash::kSha256, Hash::kRipemd160}) {
    // 16 is shorter than a digest, 64 longer, 24 no multiple of one.
    for (const size_t length : {16, 24, 32, 64}) {
      SecretBytes key(length);
      ASSERT_TRUE(fill_random(key.span()).ok());
      const auto material = split_key(hash, key.span(), 40);
      ASSERT_TRUE(material.ok());
      ASSERT_EQ(material->size(), 40 * length);
      const auto merged = merge_key(hash, material->span(), 40);
      ASSERT_TRUE(merged.ok());
      EXPECT_TRUE(equal_in_constant_time(merged->span(), key.span()));
    }
  }
}

TEST(AntiForensic, EveryStripeIsNeeded) {
  const auto material = split_key(Hash::kSha256, bytes("0123456789abcdef"), 8);
  ASSERT_TRUE(material.ok());
  for (size_t stripe = 0; stripe < 8; ++stripe) {
    SecretBytes damaged = SecretBytes::copy_of(material->span());
    damaged.data()[stripe * 16] ^= 1;
    const auto merged = merge_key(Hash::kSha256, damaged.span(), 8);
    ASSERT_TRUE(merged.ok());
    EXPECT_FALSE(
        equal_in_constant_time(merged->span(), bytes("0123456789abcdef")));
  }
}

TEST(FillRandom, DiffersEachTime) {
  SecretBytes a(300);
  SecretBytes b(300);
  ASSERT_TRUE(fill_random(a.span()).ok());
  ASSERT_TRUE(fill_random(b.span()).ok());
  EXPECT_FALSE(equal_in_constant_time(a.span(), b.span()));
}

}  // namespace
}  // namespace spindle::crypto

#include "formats/crypto/sector_cipher.h"

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/string_view.h"
#include "engine/io_vector.h"
#include "engine/secret_memory.h"
#include "engine/sector.h"
#include "gtest/gtest.h"

namespace spindle::crypto {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes from_hex(absl::string_view text) {
  const std::string raw = absl::HexStringToBytes(text);
  return Bytes(raw.begin(), raw.end());
}

IoVector whole(const Bytes& bytes) {
  return IoVector(const_cast<uint8_t*>(bytes.data()), bytes.size());
}

std::unique_ptr<SectorCipher> make(const SectorCipherSpec& spec,
                                   const Bytes& key) {
  auto cipher = SectorCipher::create(spec, key);
  EXPECT_TRUE(cipher.ok()) << cipher.status();
  return cipher.ok() ? *std::move(cipher) : nullptr;
}

Bytes encrypted(const SectorCipher& cipher, const Bytes& plain,
                uint64_t first_sector) {
  Bytes out(plain.size());
  EXPECT_TRUE(cipher.encrypt(whole(plain), first_sector, out.data()).ok());
  return out;
}

std::string head_hex(const Bytes& bytes, size_t count) {
  return absl::BytesToHexString(
      {reinterpret_cast<const char*>(bytes.data()), count});
}

struct BlockVector {
  CipherFamily family;
  const char* key;
  const char* plain;
  const char* cipher;
};

// FIPS 197 appendix C; NESSIE's sets for Serpent; the Twofish paper, table of
// intermediate values.
constexpr BlockVector kBlockVectors[] = {
    {CipherFamily::kAes, "000102030405060708090a0b0c0d0e0f",
     "00112233445566778899aabbccddeeff", "69c4e0d86a7b0430d8cdb78070b4c55a"},
    {CipherFamily::kAes, "000102030405060708090a0b0c0d0e0f1011121314151617",
     "00112233445566778899aabbccddeeff", "dda97ca4864cdfe06eaf70a0ec0d7191"},
    {CipherFamily::kAes,
     "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
     "00112233445566778899aabbccddeeff", "8ea2b7ca516745bfeafc49904b496089"},
    {CipherFamily::kSerpent, "80000000000000000000000000000000",
     "00000000000000000000000000000000", "264e5481eff42a4606abda06c0bfda3d"},
    {CipherFamily::kSerpent, "800000000000000000000000000000000000000000000000",
     "00000000000000000000000000000000", "9e274ead9b737bb21efcfca548602689"},
    {CipherFamily::kSerpent,
     "8000000000000000000000000000000000000000000000000000000000000000",
     "00000000000000000000000000000000", "a223aa1288463c0e2be38ebd825616c0"},
    {CipherFamily::kTwofish, "00000000000000000000000000000000",
     "00000000000000000000000000000000", "9f589f5cf6122c32b6bfec2f2ae8c35a"},
    {CipherFamily::kTwofish,
     "0123456789abcdeffedcba987654321000112233445566778899aabbccddeeff",
     "00000000000000000000000000000000", "37527be0052334b89f0cfccae87cfa20"},
};

TEST(SectorCipher, PublishedBlocks) {
  for (const BlockVector& v : kBlockVectors) {
    const Bytes key = from_hex(v.key);
    Bytes plain = from_hex(v.plain);
    plain.resize(kSectorSizeBytes);
    SectorCipherSpec spec;
    spec.cipher = {v.family, key.size()};
    spec.mode = CipherMode::kEcb;
    const auto ecb = make(spec, key);
    ASSERT_NE(ecb, nullptr);
    EXPECT_EQ(head_hex(encrypted(*ecb, plain, 5), 16), v.cipher);
    // The first block of CBC with a vector of zeroes is the same.
    spec.mode = CipherMode::kCbc;
    const auto cbc = make(spec, key);
    ASSERT_NE(cbc, nullptr);
    EXPECT_EQ(head_hex(encrypted(*cbc, plain, 0), 16), v.cipher);
  }
}

// IEEE 1619-2007, annex B, vectors 1, 2 and 4.
TEST(SectorCipher, PublishedXts) {
  SectorCipherSpec spec;
  spec.cipher.key_bytes = 16;
  const auto zero = make(spec, Bytes(32, 0));
  EXPECT_EQ(head_hex(encrypted(*zero, Bytes(512, 0), 0), 32),
            "917cf69ebd68b2ec9b9fe9a3eadda692"
            "cd43d2f59598ed858c02c2652fbf922e");
  Bytes key(32, 0x11);
  std::fill(key.begin() + 16, key.end(), 0x22);
  const auto second = make(spec, key);
  EXPECT_EQ(head_hex(encrypted(*second, Bytes(512, 0x44), 0x3333333333), 32),
            "c454185e6a16936e39334038acef838b"
            "fb186fff7480adc4289382ecd6d394f0");
  const auto fourth = make(spec, from_hex("27182818284590452353602874713526"
                                          "31415926535897932384626433832795"));
  Bytes plain(512);
  for (size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<uint8_t>(i);
  EXPECT_EQ(head_hex(encrypted(*fourth, plain, 0), 32),
            "27a7479befa1d476489f308cd4cfa6e2"
            "a96e4bbe3208ff25287dd3819616e89c");
}

TEST(SectorCipher, PlainHas32BitsOfTheNumber) {
  SectorCipherSpec spec;
  const Bytes key(64, 7);
  spec.iv_generator = IvGenerator::kPlain;
  const auto plain = make(spec, key);
  spec.iv_generator = IvGenerator::kPlain64;
  const auto plain64 = make(spec, key);
  const Bytes data(512, 1);
  const uint64_t far = (uint64_t{1} << 32) + 9;
  EXPECT_EQ(encrypted(*plain, data, far), encrypted(*plain, data, 9));
  EXPECT_NE(encrypted(*plain64, data, far), encrypted(*plain64, data, 9));
  EXPECT_EQ(encrypted(*plain64, data, 9), encrypted(*plain, data, 9));
}

std::vector<SectorCipherSpec> all_specs() {
  std::vector<SectorCipherSpec> specs;
  for (const auto family :
       {CipherFamily::kAes, CipherFamily::kSerpent, CipherFamily::kTwofish}) {
    for (const size_t key_bytes : {16, 24, 32}) {
      if (family == CipherFamily::kTwofish && key_bytes == 24) continue;
      for (const auto mode :
           {CipherMode::kEcb, CipherMode::kCbc, CipherMode::kXts}) {
        for (const auto generator :
             {IvGenerator::kPlain, IvGenerator::kPlain64, IvGenerator::kEssiv})
          specs.push_back({{family, key_bytes}, mode, generator});
      }
    }
  }
  return specs;
}

TEST(SectorCipher, SegmentsMayBeOfAnyLength) {
  for (const SectorCipherSpec& spec : all_specs()) {
    const auto cipher = make(spec, Bytes(spec.key_bytes(), 0x5c));
    ASSERT_NE(cipher, nullptr);
    Bytes plain(8 * 512);
    for (size_t i = 0; i < plain.size(); ++i)
      plain[i] = static_cast<uint8_t>(i * i);
    const Bytes expected = encrypted(*cipher, plain, 77);
    EXPECT_NE(expected, plain);
    const Bytes before = plain;
    uint8_t* const at = plain.data();
    const IoVector pieces({iovec{at, 100}, iovec{at + 100, 1},
                           iovec{at + 101, 2000}, iovec{at + 2101, 1024},
                           iovec{at + 3125, plain.size() - 3125}});
    Bytes out(plain.size());
    ASSERT_TRUE(cipher->encrypt(pieces, 77, out.data()).ok());
    EXPECT_EQ(out, expected);
    EXPECT_EQ(plain, before) << "what is encrypted does not change";
    plain = expected;
    ASSERT_TRUE(cipher->decrypt(pieces, 77).ok());
    EXPECT_EQ(plain, before);
  }
}

TEST(SectorCipher, RefusesWhatCannotBe) {
  const struct {
    SectorCipherSpec spec;
    size_t key_bytes;
    absl::StatusCode code;
    const char* says;
  } kCases[] = {
      {{}, 32, absl::StatusCode::kInvalidArgument, "64 bytes, not 32"},
      {{{CipherFamily::kTwofish, 24}},
       48,
       absl::StatusCode::kUnimplemented,
       "192 bits"},
      {{{}, CipherMode::kCbc, IvGenerator::kEssiv, Hash::kSha1},
       32,
       absl::StatusCode::kUnimplemented,
       "160 bits"},
      {{{}, CipherMode::kCbc, IvGenerator::kNone},
       32,
       absl::StatusCode::kInvalidArgument,
       "vector"},
  };
  for (const auto& c : kCases) {
    const auto cipher = SectorCipher::create(c.spec, Bytes(c.key_bytes, 1));
    EXPECT_EQ(cipher.status().code(), c.code) << cipher.status();
    EXPECT_TRUE(absl::StrContains(cipher.status().message(), c.says))
        << cipher.status();
  }
}

TEST(SectorCipher, ThreadsDoNotDisturbEachOther) {
  SectorCipherSpec spec;
  spec.iv_generator = IvGenerator::kEssiv;
  const auto cipher = make(spec, Bytes(64, 3));
  std::vector<std::thread> threads;
  for (uint8_t number = 1; number <= 8; ++number) {
    threads.emplace_back([&cipher, number] {
      const Bytes plain(4096, number);
      const Bytes expected = encrypted(*cipher, plain, number);
      for (int i = 0; i < 200; ++i) {
        Bytes now = encrypted(*cipher, plain, number);
        ASSERT_EQ(now, expected);
        ASSERT_TRUE(cipher->decrypt(whole(now), number).ok());
        ASSERT_EQ(now, plain);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// How often the key lies in this process's memory, outside and inside of what
// is kept out of core dumps.
struct Sightings {
  int open = 0;
  int hidden = 0;
};

constexpr uint8_t kMask = 0xa7;

Sightings find_key(const std::array<uint8_t, 32>& masked_key) {
  Sightings found;
  std::ifstream maps("/proc/self/maps");
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  std::string line;
  while (std::getline(maps, line)) {
    uintptr_t first = 0;
    uintptr_t end = 0;
    char flags[5] = {};
    if (std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &end, flags) == 3 &&
        flags[0] == 'r' && flags[1] == 'w')
      ranges.emplace_back(first, end);
  }
  for (const auto& [first, end] : ranges) {
    const auto* at = reinterpret_cast<const uint8_t*>(first);
    const auto* const last =
        reinterpret_cast<const uint8_t*>(end) - masked_key.size();
    while (at <= last) {
      at = static_cast<const uint8_t*>(std::memchr(
          at, masked_key[0] ^ kMask, static_cast<size_t>(last - at) + 1));
      if (at == nullptr) break;
      size_t same = 0;
      while (same < masked_key.size() && (at[same] ^ kMask) == masked_key[same])
        ++same;
      if (same == masked_key.size())
        ++(is_secret(at) ? found.hidden : found.open);
      ++at;
    }
  }
  return found;
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SPINDLE_TEST_HAS_SHADOW_MEMORY 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SPINDLE_TEST_HAS_SHADOW_MEMORY 1
#endif

TEST(SectorCipher, KeysAreHiddenWhileInUseAndGoneAfterwards) {
#ifdef SPINDLE_TEST_HAS_SHADOW_MEMORY
  GTEST_SKIP() << "shadow memory is too large to search";
#endif
  std::array<uint8_t, 32> masked;
  for (size_t i = 0; i < masked.size(); ++i)
    masked[i] = static_cast<uint8_t>(i * 37 + 11);
  {
    SecretBytes key(64);
    for (size_t i = 0; i < key.size(); ++i)
      key.data()[i] = masked[i % masked.size()] ^ kMask;
    auto cipher = SectorCipher::create({}, key.span());
    ASSERT_TRUE(cipher.ok());
    const Bytes data(4096, 1);
    encrypted(**cipher, data, 1);
    const Sightings now = find_key(masked);
    // Ours, the cipher's copy, and the schedule, which begins with the key.
    EXPECT_GE(now.hidden, 6);
    EXPECT_EQ(now.open, 0);
  }
  const Sightings after = find_key(masked);
  EXPECT_EQ(after.hidden, 0);
  EXPECT_EQ(after.open, 0);
}

}  // namespace
}  // namespace spindle::crypto

#include "formats/luks/header.h"

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "engine/byte_order.h"
#include "engine/sector.h"
#include "gtest/gtest.h"

namespace spindle::luks {
namespace {

constexpr uint64_t kAreaBytes = uint64_t{16} << 20;
using Bytes = std::array<uint8_t, kHeaderBytes>;

Header sample() {
  Header header;
  header.mode = "xts-plain64";
  header.key_iterations = 1000;
  header.uuid = "6e89f458-4340-4c09-993f-b5597dc50cfc";
  header.key_digest[3] = 7;
  header.key_salt[31] = 9;
  place_slots(&header);
  header.slots[6].active = true;
  header.slots[6].iterations = 4711;
  header.slots[6].salt[0] = 1;
  return header;
}

TEST(LuksHeader, ReadsWhatItWrites) {
  const Header header = sample();
  const auto parsed = parse_header(serialise_header(header), kAreaBytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed, header);
}

// Where qemu-img 7.2 puts them for aes-256 in mode xts.
TEST(LuksHeader, PlacesSlotsAsQemu) {
  const Header header = sample();
  EXPECT_EQ(header.slots[0].material_sector, 8U);
  EXPECT_EQ(header.slots[1].material_sector * kSectorSizeBytes, 262144U);
  EXPECT_EQ(header.slots[7].material_sector * kSectorSizeBytes, 1810432U);
  EXPECT_EQ(header.payload_sector * kSectorSizeBytes, 2068480U);
}

TEST(LuksHeader, UnderstandsModes) {
  const struct {
    const char* text;
    crypto::CipherMode mode;
    crypto::IvGenerator generator;
    crypto::Hash hash;
  } kCases[] = {
      {"cbc-essiv:sha1", crypto::CipherMode::kCbc, crypto::IvGenerator::kEssiv,
       crypto::Hash::kSha1},
      {"cbc-plain", crypto::CipherMode::kCbc, crypto::IvGenerator::kPlain,
       crypto::Hash::kSha256},
      {"cbc-plain64:md5", crypto::CipherMode::kCbc,
       crypto::IvGenerator::kPlain64, crypto::Hash::kSha256},
      {"ecb", crypto::CipherMode::kEcb, crypto::IvGenerator::kNone,
       crypto::Hash::kSha256},
  };
  for (const auto& c : kCases) {
    Header header = sample();
    header.spec.mode = c.mode;
    header.mode = c.text;
    const auto parsed = parse_header(serialise_header(header), kAreaBytes);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->spec.mode, c.mode);
    EXPECT_EQ(parsed->spec.iv_generator, c.generator);
    EXPECT_EQ(parsed->spec.iv_hash, c.hash);
    EXPECT_EQ(parsed->mode, c.text);
  }
}

void put_text(uint8_t* at, const char* text) {
  std::memset(at, 0, kNameBytes);
  std::memcpy(at, text, std::strlen(text));
}

uint8_t* slot_at(Bytes& bytes, size_t number) {
  return bytes.data() + kSlotsOffset + number * kSlotBytes;
}

struct Damage {
  const char* says;
  absl::StatusCode code;
  std::function<void(Bytes&)> make;
};

std::vector<Damage> damages() {
  using absl::StatusCode;
  return {
      {"no magic", StatusCode::kInvalidArgument, [](Bytes& b) { b[5] = 0; }},
      {"version 2", StatusCode::kUnimplemented, [](Bytes& b) { b[7] = 2; }},
      {"cipher name 'des'", StatusCode::kUnimplemented,
       [](Bytes& b) { put_text(&b[kCipherNameOffset], "des"); }},
      {"cipher name does not end", StatusCode::kDataLoss,
       [](Bytes& b) { std::memset(&b[kCipherNameOffset], 'a', kNameBytes); }},
      {"cipher mode does not end", StatusCode::kDataLoss,
       [](Bytes& b) { std::memset(&b[kCipherModeOffset], 'a', kNameBytes); }},
      {"cipher mode 'xts'", StatusCode::kUnimplemented,
       [](Bytes& b) { put_text(&b[kCipherModeOffset], "xts"); }},
      {"cipher mode 'ctr-plain64'", StatusCode::kUnimplemented,
       [](Bytes& b) { put_text(&b[kCipherModeOffset], "ctr-plain64"); }},
      {"cipher mode 'xts-random'", StatusCode::kUnimplemented,
       [](Bytes& b) { put_text(&b[kCipherModeOffset], "xts-random"); }},
      {"does not name the hash", StatusCode::kDataLoss,
       [](Bytes& b) { put_text(&b[kCipherModeOffset], "xts-essiv"); }},
      {"hash 'whirlpool'", StatusCode::kUnimplemented,
       [](Bytes& b) { put_text(&b[kHashOffset], "whirlpool"); }},
      {"hash does not end", StatusCode::kDataLoss,
       [](Bytes& b) { std::memset(&b[kHashOffset], 's', kNameBytes); }},
      {"UUID does not end", StatusCode::kDataLoss,
       [](Bytes& b) { std::memset(&b[kUuidOffset], '1', kUuidBytes); }},
      {"key length 65", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kKeyLengthOffset], 65); }},
      {"key length 0", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kKeyLengthOffset], 0); }},
      {"key length 4294967295", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kKeyLengthOffset], 0xffffffff); }},
      {"digest are zero", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kKeyIterationsOffset], 0); }},
      {"state 17 of key slot 2", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(slot_at(b, 2), 17); }},
      {"iterations of key slot 6 are zero", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(slot_at(b, 6) + kSlotIterationsOffset, 0); }},
      {"stripes 4001 of key slot 7", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(slot_at(b, 7) + kSlotStripesOffset, 4001); }},
      {"within the header", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(slot_at(b, 3) + kSlotMaterialOffset, 1); }},
      {"slots 1 and 4 overlaps", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(slot_at(b, 4) + kSlotMaterialOffset, 600); }},
      {"beyond the payload's start", StatusCode::kDataLoss,
       [](Bytes& b) {
         store_big32(slot_at(b, 4) + kSlotMaterialOffset, 0xffffffff);
       }},
      {"beyond the end", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kPayloadOffset], 0xfffffff0); }},
      {"beyond the payload's start at 0", StatusCode::kDataLoss,
       [](Bytes& b) { store_big32(&b[kPayloadOffset], 0); }},
  };
}

TEST(LuksHeader, RefusesDamage) {
  for (const Damage& damage : damages()) {
    Bytes bytes = serialise_header(sample());
    damage.make(bytes);
    const auto parsed = parse_header(bytes, kAreaBytes);
    EXPECT_EQ(parsed.status().code(), damage.code) << damage.says;
    EXPECT_TRUE(absl::StrContains(parsed.status().message(), damage.says))
        << parsed.status() << " should say " << damage.says;
  }
}

// A guest can write one sector: that must show what it would become.
TEST(LuksHeader, IsRecognisedByItsFirstBytes) {
  Bytes bytes = serialise_header(sample());
  EXPECT_TRUE(looks_like_luks(absl::MakeConstSpan(bytes.data(), 512)));
  EXPECT_TRUE(looks_like_luks(absl::MakeConstSpan(bytes.data(), 8)));
  EXPECT_FALSE(looks_like_luks(absl::MakeConstSpan(bytes.data(), 7)));
  EXPECT_FALSE(looks_like_luks({}));
  bytes[kVersionOffset + 1] = 2;
  EXPECT_FALSE(looks_like_luks(bytes));
}

TEST(LuksHeader, RefusesLessThanAHeader) {
  const Bytes bytes = serialise_header(sample());
  const auto parsed =
      parse_header(absl::MakeConstSpan(bytes.data(), 591), kAreaBytes);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(parse_header(bytes, 2068479).ok());
  EXPECT_TRUE(parse_header(bytes, 2068480).ok());
}

}  // namespace
}  // namespace spindle::luks

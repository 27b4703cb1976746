#include "formats/luks/header.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"
#include "engine/sector.h"

namespace spindle::luks {
namespace {

using crypto::CipherMode;
using crypto::IvGenerator;

absl::Status damaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("LUKS header: ", what));
}

absl::Status damaged(absl::string_view what, absl::string_view qemu_words) {
  return with_qemu_words(damaged(what), qemu_words);
}

absl::Status unknown(absl::string_view field, absl::string_view value) {
  return absl::UnimplementedError(
      absl::StrCat("LUKS header: ", field, " '", value, "' is not supported"));
}

// A text that must end within its field.
absl::StatusOr<std::string> read_text(absl::Span<const uint8_t> field,
                                      absl::string_view name) {
  const auto end = std::find(field.begin(), field.end(), 0);
  if (end == field.end()) {
    return damaged(absl::StrCat(name, " does not end within its ", field.size(),
                                " bytes"));
  }
  return std::string(field.begin(), end);
}

template <size_t kSize>
void write_text(const std::string& text, uint8_t* to) {
  std::memcpy(to, text.data(), std::min(text.size(), kSize - 1));
}

// "xts-plain64", "cbc-essiv:sha256", "ecb".
absl::Status parse_mode(const std::string& text,
                        crypto::SectorCipherSpec* spec) {
  const absl::string_view view = text;
  const size_t dash = view.find('-');
  const std::optional<CipherMode> mode =
      crypto::parse_mode(view.substr(0, dash));
  if (!mode.has_value()) {
    return with_qemu_words(
        unknown("cipher mode", text),
        absl::StrCat("Cipher mode '", view.substr(0, dash), "' not supported"));
  }
  spec->mode = *mode;
  if (dash == absl::string_view::npos) {
    spec->iv_generator = IvGenerator::kNone;
    return *mode == CipherMode::kEcb ? absl::OkStatus()
                                     : unknown("cipher mode", text);
  }
  const absl::string_view vector = view.substr(dash + 1);
  const size_t colon = vector.find(':');
  const auto generator = crypto::parse_iv_generator(vector.substr(0, colon));
  if (!generator.has_value()) return unknown("cipher mode", text);
  spec->iv_generator = *generator;
  if (colon == absl::string_view::npos) {
    return *generator == IvGenerator::kEssiv
               ? damaged(absl::StrCat("cipher mode '", text,
                                      "' does not name the hash of its essiv"))
               : absl::OkStatus();
  }
  const auto hash = crypto::parse_hash(vector.substr(colon + 1));
  if (hash.has_value()) {
    spec->iv_hash = *hash;
  } else if (*generator == IvGenerator::kEssiv) {
    return unknown("cipher mode", text);
  }
  return absl::OkStatus();
}

absl::Status parse_key_length(uint32_t key_bytes,
                              crypto::SectorCipherSpec* spec) {
  const uint32_t keys = spec->mode == CipherMode::kXts ? 2 : 1;
  const uint32_t cipher_bytes = key_bytes / keys;
  if (key_bytes % keys != 0 ||
      (cipher_bytes != 16 && cipher_bytes != 24 && cipher_bytes != 32)) {
    return damaged(absl::StrCat(
        "key length ", key_bytes, " is not ", keys, " times 16, 24 or 32, as ",
        crypto::family_name(spec->cipher.family), " in mode ",
        crypto::mode_name(spec->mode), " wants"));
  }
  spec->cipher.key_bytes = cipher_bytes;
  return absl::OkStatus();
}

absl::StatusOr<crypto::SectorCipherSpec> parse_spec(
    absl::Span<const uint8_t> bytes, const std::string& mode) {
  const auto name =
      read_text(bytes.subspan(kCipherNameOffset, kNameBytes), "cipher name");
  if (!name.ok()) return name.status();
  crypto::SectorCipherSpec spec;
  const auto family = crypto::parse_family(*name);
  if (!family.has_value()) return unknown("cipher name", *name);
  spec.cipher.family = *family;
  absl::Status status = parse_mode(mode, &spec);
  if (status.ok()) {
    status =
        parse_key_length(load_big32(bytes.data() + kKeyLengthOffset), &spec);
  }
  if (!status.ok()) return status;
  return spec;
}

absl::StatusOr<KeySlot> parse_slot(const uint8_t* from, size_t number) {
  KeySlot slot;
  const uint32_t state = load_big32(from + kSlotStateOffset);
  if (state != kSlotActive && state != kSlotInactive) {
    return damaged(absl::StrCat("state ", state, " of key slot ", number,
                                " is neither active nor inactive"),
                   absl::StrCat("Keyslot ", number,
                                " state (active/disable) is corrupted"));
  }
  slot.active = state == kSlotActive;
  slot.iterations = load_big32(from + kSlotIterationsOffset);
  std::memcpy(slot.salt.data(), from + kSlotSaltOffset, slot.salt.size());
  slot.material_sector = load_big32(from + kSlotMaterialOffset);
  const uint32_t stripes = load_big32(from + kSlotStripesOffset);
  if (stripes != kStripes) {
    return damaged(absl::StrCat("stripes ", stripes, " of key slot ", number,
                                " are not ", kStripes),
                   absl::StrCat("Keyslot ", number, " is corrupted (stripes ",
                                stripes, " != ", kStripes, ")"));
  }
  if (slot.active && slot.iterations == 0) {
    return damaged(
        absl::StrCat("iterations of key slot ", number, " are zero"),
        absl::StrCat("Keyslot ", number, " iteration count is zero"));
  }
  return slot;
}

// 64 bits, so that no sum wraps.
uint64_t material_end(const Header& header, size_t number) {
  return uint64_t{header.slots[number].material_sector} +
         header.material_sectors();
}

absl::Status check_slot_place(const Header& header, size_t number) {
  const uint64_t first = header.slots[number].material_sector;
  const uint64_t end = material_end(header, number);
  if (first < kHeaderSectors) {
    return damaged(absl::StrCat("key material of slot ", number,
                                " begins at sector ", first,
                                ", within the header's ", kHeaderSectors));
  }
  if (end > header.payload_sector) {
    return damaged(absl::StrCat(
        "key material of slot ", number, " ends at sector ", end,
        ", beyond the payload's start at ", header.payload_sector));
  }
  for (size_t other = 0; other < number; ++other) {
    if (first < material_end(header, other) &&
        header.slots[other].material_sector < end) {
      return damaged(absl::StrCat("key material of slots ", other, " and ",
                                  number, " overlaps, at sectors ",
                                  header.slots[other].material_sector, " and ",
                                  first));
    }
  }
  return absl::OkStatus();
}

absl::Status parse_slots(absl::Span<const uint8_t> bytes, Header* header) {
  for (size_t i = 0; i < kSlotCount; ++i) {
    const absl::StatusOr<KeySlot> slot =
        parse_slot(bytes.data() + kSlotsOffset + i * kSlotBytes, i);
    if (!slot.ok()) return slot.status();
    header->slots[i] = *slot;
    absl::Status status = check_slot_place(*header, i);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status check_payload(const Header& header, uint64_t area_bytes) {
  const uint64_t offset = uint64_t{header.payload_sector} * kSectorSizeBytes;
  if (offset <= area_bytes) return absl::OkStatus();
  return damaged(absl::StrCat("payload offset ", header.payload_sector,
                              " (in sectors) is beyond the end at ", area_bytes,
                              " bytes"));
}

// REQUIRES: there are so many bytes.
bool has_magic(absl::Span<const uint8_t> head) {
  return std::equal(std::begin(kMagic), std::end(kMagic), head.begin());
}

absl::Status check_start(absl::Span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a LUKS volume: ", bytes.size(),
                     " bytes are less than the header's ", kHeaderBytes));
  }
  if (!has_magic(bytes)) {
    return with_qemu_words(
        absl::InvalidArgumentError("not a LUKS volume: no magic number"),
        "Volume is not in LUKS format");
  }
  const uint16_t version = load_big16(bytes.data() + kVersionOffset);
  if (version == kVersion1) return absl::OkStatus();
  return with_qemu_words(
      absl::UnimplementedError(absl::StrCat("LUKS header: version ", version,
                                            " is not supported; version ",
                                            kVersion1, " is")),
      absl::StrCat("LUKS version ", version, " is not supported"));
}

}  // namespace

uint32_t Header::material_sectors() const {
  return static_cast<uint32_t>(
      align_up(key_bytes() * kStripes, kSectorSizeBytes) / kSectorSizeBytes);
}

size_t Header::active_slots() const {
  return static_cast<size_t>(
      std::count_if(slots.begin(), slots.end(),
                    [](const KeySlot& slot) { return slot.active; }));
}

bool looks_like_luks(absl::Span<const uint8_t> head) {
  return head.size() >= kCipherNameOffset && has_magic(head) &&
         load_big16(head.data() + kVersionOffset) == kVersion1;
}

absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> bytes,
                                    uint64_t area_bytes) {
  absl::Status status = check_start(bytes);
  if (!status.ok()) return status;
  Header header;
  const auto mode =
      read_text(bytes.subspan(kCipherModeOffset, kNameBytes), "cipher mode");
  if (!mode.ok()) return mode.status();
  header.mode = *mode;
  const auto spec = parse_spec(bytes, header.mode);
  if (!spec.ok()) return spec.status();
  header.spec = *spec;

  const auto hash_text =
      read_text(bytes.subspan(kHashOffset, kNameBytes), "hash");
  if (!hash_text.ok()) return hash_text.status();
  const auto hash = crypto::parse_hash(*hash_text);
  if (!hash.has_value()) {
    return with_qemu_words(
        unknown("hash", *hash_text),
        absl::StrCat("Hash algorithm '", *hash_text, "' not supported"));
  }
  header.hash = *hash;

  const auto uuid = read_text(bytes.subspan(kUuidOffset, kUuidBytes), "UUID");
  if (!uuid.ok()) return uuid.status();
  header.uuid = *uuid;

  header.payload_sector = load_big32(bytes.data() + kPayloadOffset);
  std::memcpy(header.key_digest.data(), bytes.data() + kKeyDigestOffset,
              header.key_digest.size());
  std::memcpy(header.key_salt.data(), bytes.data() + kKeySaltOffset,
              header.key_salt.size());
  header.key_iterations = load_big32(bytes.data() + kKeyIterationsOffset);
  if (header.key_iterations == 0) {
    return damaged("iterations of the key's digest are zero",
                   "LUKS key iteration count is zero");
  }
  status = parse_slots(bytes, &header);
  if (status.ok()) status = check_payload(header, area_bytes);
  if (!status.ok()) return status;
  return header;
}

std::array<uint8_t, kSlotBytes> serialise_slot(const KeySlot& slot) {
  std::array<uint8_t, kSlotBytes> bytes = {};
  store_big32(bytes.data() + kSlotStateOffset,
              slot.active ? kSlotActive : kSlotInactive);
  store_big32(bytes.data() + kSlotIterationsOffset, slot.iterations);
  std::memcpy(bytes.data() + kSlotSaltOffset, slot.salt.data(),
              slot.salt.size());
  store_big32(bytes.data() + kSlotMaterialOffset, slot.material_sector);
  store_big32(bytes.data() + kSlotStripesOffset, kStripes);
  return bytes;
}

std::array<uint8_t, kHeaderBytes> serialise_header(const Header& header) {
  std::array<uint8_t, kHeaderBytes> bytes = {};
  uint8_t* const at = bytes.data();
  std::memcpy(at, kMagic, sizeof(kMagic));
  store_big16(at + kVersionOffset, kVersion1);
  write_text<kNameBytes>(
      std::string(crypto::family_name(header.spec.cipher.family)),
      at + kCipherNameOffset);
  write_text<kNameBytes>(header.mode, at + kCipherModeOffset);
  write_text<kNameBytes>(std::string(crypto::hash_name(header.hash)),
                         at + kHashOffset);
  store_big32(at + kPayloadOffset, header.payload_sector);
  store_big32(at + kKeyLengthOffset, static_cast<uint32_t>(header.key_bytes()));
  std::memcpy(at + kKeyDigestOffset, header.key_digest.data(),
              header.key_digest.size());
  std::memcpy(at + kKeySaltOffset, header.key_salt.data(),
              header.key_salt.size());
  store_big32(at + kKeyIterationsOffset, header.key_iterations);
  write_text<kUuidBytes>(header.uuid, at + kUuidOffset);
  for (size_t i = 0; i < kSlotCount; ++i) {
    const auto slot = serialise_slot(header.slots[i]);
    std::memcpy(at + kSlotsOffset + i * kSlotBytes, slot.data(), slot.size());
  }
  return bytes;
}

void place_slots(Header* header) {
  constexpr uint32_t kAlignmentSectors = kAlignmentBytes / kSectorSizeBytes;
  const auto sectors = static_cast<uint32_t>(
      align_up(header->material_sectors(), kAlignmentSectors));
  uint32_t next = kAlignmentSectors;
  for (KeySlot& slot : header->slots) {
    slot.material_sector = next;
    next += sectors;
  }
  header->payload_sector = next;
}

}  // namespace spindle::luks

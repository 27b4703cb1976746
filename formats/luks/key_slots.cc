#include "formats/luks/key_slots.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "absl/base/macros.h"
#include "absl/strings/str_cat.h"
#include "engine/errors.h"
#include "engine/io_vector.h"
#include "engine/sector.h"
#include "formats/crypto/anti_forensic.h"
#include "formats/crypto/key_derivation.h"
#include "formats/crypto/sector_cipher.h"

namespace spindle::luks {
namespace {

using crypto::SectorCipher;

uint64_t slot_offset(const HeaderArea& area, size_t number) {
  return area.offset_bytes + kSlotsOffset + number * kSlotBytes;
}

uint64_t material_offset(const HeaderArea& area, const KeySlot& slot) {
  return area.offset_bytes + uint64_t{slot.material_sector} * kSectorSizeBytes;
}

size_t material_bytes(const Header& header) {
  return size_t{header.material_sectors()} * kSectorSizeBytes;
}

absl::Status check_iterations(uint32_t iterations) {
  if (iterations <= kMaxIterations) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("LUKS header: ", iterations,
                   " iterations are more than the limit of ", kMaxIterations));
}

// Encrypts key material, whose sectors are counted from 0.
absl::StatusOr<std::unique_ptr<SectorCipher>> slot_cipher(
    const Header& header, const KeySlot& slot,
    absl::Span<const uint8_t> passphrase) {
  absl::Status status = check_iterations(slot.iterations);
  if (!status.ok()) return status;
  const absl::StatusOr<SecretBytes> key = crypto::derive_key(
      header.hash, passphrase, slot.salt, slot.iterations, header.key_bytes());
  if (!key.ok()) return key.status();
  return SectorCipher::create(header.spec, key->span());
}

absl::StatusOr<SecretBytes> digest_of(const Header& header,
                                      absl::Span<const uint8_t> key) {
  absl::Status status = check_iterations(header.key_iterations);
  if (!status.ok()) return status;
  return crypto::derive_key(header.hash, key, header.key_salt,
                            header.key_iterations, kKeyDigestBytes);
}

absl::StatusOr<uint32_t> choose_iterations(crypto::Hash hash, size_t key_bytes,
                                           absl::Duration time) {
  const absl::StatusOr<uint64_t> measured =
      crypto::measure_iterations(hash, key_bytes, time);
  if (!measured.ok()) return measured.status();
  if (*measured > kMaxIterations) {
    return absl::InvalidArgumentError(absl::StrCat(
        "iter-time ", absl::FormatDuration(time), " means ", *measured,
        " iterations, more than the limit of ", kMaxIterations));
  }
  return std::max(static_cast<uint32_t>(*measured), kMinIterations);
}

absl::StatusOr<SecretBytes> encrypted_material(
    const Header& header, const KeySlot& slot,
    absl::Span<const uint8_t> passphrase, const SecretBytes& key) {
  const auto cipher = slot_cipher(header, slot, passphrase);
  if (!cipher.ok()) return cipher.status();
  const absl::StatusOr<SecretBytes> split =
      crypto::split_key(header.hash, key.span(), kStripes);
  if (!split.ok()) return split.status();
  SecretBytes plain(material_bytes(header));
  std::copy(split->span().begin(), split->span().end(), plain.data());
  SecretBytes encrypted(plain.size());
  absl::Status status = (*cipher)->encrypt(IoVector(plain.data(), plain.size()),
                                           0, encrypted.data());
  if (!status.ok()) return status;
  return encrypted;
}

}  // namespace

absl::StatusOr<Header> read_header(const HeaderArea& area,
                                   uint64_t area_bytes) {
  std::array<uint8_t, kHeaderBytes> bytes;
  const size_t present =
      static_cast<size_t>(std::min<uint64_t>(area_bytes, bytes.size()));
  absl::Status status = area.channel->read(Purpose::kHeaderLoad, bytes.data(),
                                           present, area.offset_bytes);
  if (!status.ok()) return status;
  return parse_header(absl::MakeConstSpan(bytes.data(), present), area_bytes);
}

absl::StatusOr<bool> is_key_of(const Header& header, const SecretBytes& key) {
  const absl::StatusOr<SecretBytes> digest = digest_of(header, key.span());
  if (!digest.ok()) return digest.status();
  return equal_in_constant_time(digest->span(), header.key_digest);
}

absl::StatusOr<std::optional<SecretBytes>> unlock_slot(
    const HeaderArea& area, const Header& header, size_t number,
    absl::Span<const uint8_t> passphrase) {
  const KeySlot& slot = header.slots[number];
  ABSL_ASSERT(slot.active);
  const auto cipher = slot_cipher(header, slot, passphrase);
  if (!cipher.ok()) return cipher.status();
  SecretBytes material(material_bytes(header));
  absl::Status status =
      area.channel->read(Purpose::kHeaderLoad, material.data(), material.size(),
                         material_offset(area, slot));
  if (status.ok()) {
    status = (*cipher)->decrypt(IoVector(material.data(), material.size()), 0);
  }
  if (!status.ok()) return status;
  material.shrink(header.key_bytes() * kStripes);
  absl::StatusOr<SecretBytes> key =
      crypto::merge_key(header.hash, material.span(), kStripes);
  if (!key.ok()) return key.status();
  const absl::StatusOr<bool> right = is_key_of(header, *key);
  if (!right.ok()) return right.status();
  if (!*right) return std::nullopt;
  return *std::move(key);
}

absl::StatusOr<SecretBytes> unlock(const HeaderArea& area, const Header& header,
                                   absl::Span<const uint8_t> passphrase) {
  for (size_t i = 0; i < kSlotCount; ++i) {
    if (!header.slots[i].active) continue;
    absl::StatusOr<std::optional<SecretBytes>> key =
        unlock_slot(area, header, i, passphrase);
    if (!key.ok()) {
      return with_context(key.status(), absl::StrCat("LUKS key slot ", i));
    }
    if (key->has_value()) return std::move(**key);
  }
  return absl::PermissionDeniedError(
      header.active_slots() == 0
          ? "the LUKS volume has no active key slot: nothing can unlock it"
          : "Invalid password, cannot unlock any keyslot");
}

absl::StatusOr<FilledSlot> prepare_slot(const Header& header, size_t number,
                                        absl::Span<const uint8_t> passphrase,
                                        const SecretBytes& key,
                                        absl::Duration time) {
  FilledSlot filled;
  filled.number = number;
  filled.slot.material_sector = header.slots[number].material_sector;
  const absl::StatusOr<uint32_t> iterations =
      choose_iterations(header.hash, header.key_bytes(), time);
  if (!iterations.ok()) return iterations.status();
  filled.slot.iterations = *iterations;
  absl::Status status = crypto::fill_random(absl::MakeSpan(filled.slot.salt));
  if (!status.ok()) return status;
  absl::StatusOr<SecretBytes> material =
      encrypted_material(header, filled.slot, passphrase, key);
  if (!material.ok()) return material.status();
  filled.material = *std::move(material);
  return filled;
}

absl::Status write_slot(const HeaderArea& area, Header* header,
                        const FilledSlot& filled) {
  const size_t number = filled.number;
  ABSL_ASSERT(!header->slots[number].active);
  KeySlot slot = filled.slot;
  absl::Status status =
      area.channel->write(Purpose::kHeaderUpdate, filled.material.data(),
                          filled.material.size(), material_offset(area, slot));
  // A slot may lie in two sectors: only its state, which does not, switches.
  if (status.ok()) {
    status =
        area.channel->write(Purpose::kHeaderUpdate, serialise_slot(slot).data(),
                            kSlotBytes, slot_offset(area, number));
  }
  if (status.ok()) status = area.channel->flush();
  if (!status.ok()) return status;
  slot.active = true;
  const auto active = serialise_slot(slot);
  status = area.channel->write(Purpose::kHeaderUpdate, active.data(),
                               sizeof(uint32_t), slot_offset(area, number));
  if (status.ok()) status = area.channel->flush();
  if (!status.ok()) {
    // Nobody was told that it is active.
    slot.active = false;
    const auto inactive = serialise_slot(slot);
    absl::Status undone =
        area.channel->write(Purpose::kHeaderUpdate, inactive.data(),
                            sizeof(uint32_t), slot_offset(area, number));
    if (undone.ok()) undone = area.channel->flush();
    if (undone.ok()) return status;
    return with_context(
        status, absl::StrCat("key slot ", number, " may stay active, for ",
                             undone.message()));
  }
  header->slots[number] = slot;
  return absl::OkStatus();
}

absl::Status erase_slot(const HeaderArea& area, Header* header, size_t number) {
  KeySlot slot = header->slots[number];
  SecretBytes noise(material_bytes(*header));
  absl::Status status = crypto::fill_random(noise.span());
  if (status.ok()) {
    status = area.channel->write(Purpose::kHeaderUpdate, noise.data(),
                                 noise.size(), material_offset(area, slot));
  }
  if (status.ok()) status = area.channel->flush();
  if (!status.ok()) return status;
  slot.active = false;
  slot.iterations = 0;
  slot.salt = {};
  const auto bytes = serialise_slot(slot);
  // The state, in one sector, comes first: the rest means nothing without it.
  status = area.channel->write(Purpose::kHeaderUpdate, bytes.data(),
                               sizeof(uint32_t), slot_offset(area, number));
  if (status.ok()) status = area.channel->flush();
  if (!status.ok()) return status;
  header->slots[number] = slot;
  status = area.channel->write(Purpose::kHeaderUpdate, bytes.data(),
                               bytes.size(), slot_offset(area, number));
  return status.ok() ? area.channel->flush() : status;
}

absl::Status set_key_digest(Header* header, const SecretBytes& key,
                            absl::Duration time) {
  const absl::StatusOr<uint32_t> iterations =
      choose_iterations(header->hash, kKeyDigestBytes, time);
  if (!iterations.ok()) return iterations.status();
  header->key_iterations = *iterations;
  absl::Status status = crypto::fill_random(absl::MakeSpan(header->key_salt));
  if (!status.ok()) return status;
  const absl::StatusOr<SecretBytes> digest = digest_of(*header, key.span());
  if (!digest.ok()) return digest.status();
  std::copy(digest->span().begin(), digest->span().end(),
            header->key_digest.begin());
  return absl::OkStatus();
}

}  // namespace spindle::luks

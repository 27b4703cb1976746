#include "formats/luks/key_slots.h"

#include <algorithm>
#include <array>
#include <limits>
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

// Encrypts key material, whose sectors are counted from 0.
absl::StatusOr<std::unique_ptr<SectorCipher>> slot_cipher(
    const Header& header, const KeySlot& slot,
    absl::Span<const uint8_t> passphrase) {
  const absl::StatusOr<SecretBytes> key = crypto::derive_key(
      header.hash, passphrase, slot.salt, slot.iterations, header.key_bytes());
  if (!key.ok()) return key.status();
  return SectorCipher::create(header.spec, key->span());
}

absl::StatusOr<SecretBytes> digest_of(const Header& header,
                                      absl::Span<const uint8_t> key) {
  return crypto::derive_key(header.hash, key, header.key_salt,
                            header.key_iterations, kKeyDigestBytes);
}

absl::StatusOr<uint32_t> choose_iterations(crypto::Hash hash, size_t key_bytes,
                                           absl::Duration time) {
  const absl::StatusOr<uint64_t> measured =
      crypto::measure_iterations(hash, key_bytes, time);
  if (!measured.ok()) return measured.status();
  constexpr uint32_t kMost = std::numeric_limits<uint32_t>::max();
  if (*measured > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("iter-time ", absl::FormatDuration(time), " means ",
                     *measured, " iterations, more than the limit of ", kMost));
  }
  return std::max(static_cast<uint32_t>(*measured), kMinIterations);
}

absl::Status write_material(const HeaderArea& area, const Header& header,
                            const KeySlot& slot,
                            absl::Span<const uint8_t> passphrase,
                            const SecretBytes& key) {
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
  return area.channel->write(Purpose::kHeaderUpdate, encrypted.data(),
                             encrypted.size(), material_offset(area, slot));
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
  const absl::StatusOr<SecretBytes> digest = digest_of(header, key->span());
  if (!digest.ok()) return digest.status();
  if (!equal_in_constant_time(digest->span(), header.key_digest))
    return std::nullopt;
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

absl::Status fill_slot(const HeaderArea& area, Header* header, size_t number,
                       absl::Span<const uint8_t> passphrase,
                       const SecretBytes& key, absl::Duration time) {
  ABSL_ASSERT(!header->slots[number].active);
  KeySlot slot = header->slots[number];
  const absl::StatusOr<uint32_t> iterations =
      choose_iterations(header->hash, header->key_bytes(), time);
  if (!iterations.ok()) return iterations.status();
  slot.iterations = *iterations;
  absl::Status status = crypto::fill_random(absl::MakeSpan(slot.salt));
  if (status.ok())
    status = write_material(area, *header, slot, passphrase, key);
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

// The LUKS header, version 1: what is parsed from an image, validated, and
// written.  No I/O.
//
// Thread safety: values and pure functions.
#ifndef SPINDLE_FORMATS_LUKS_HEADER_H_
#define SPINDLE_FORMATS_LUKS_HEADER_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/crypto/algorithms.h"
#include "formats/luks/layout.h"

namespace spindle::luks {

using Salt = std::array<uint8_t, kSaltBytes>;

struct KeySlot {
  bool active = false;
  uint32_t iterations = 0;
  Salt salt = {};
  // Where its key material begins, counted from the start of the header.
  uint32_t material_sector = 0;
  bool operator==(const KeySlot&) const = default;
};

struct Header {
  crypto::SectorCipherSpec spec;
  // "xts-plain64", as it stands in the image.
  std::string mode;
  crypto::Hash hash = crypto::Hash::kSha256;
  // Where the data begin, counted from the start of the header.
  uint32_t payload_sector = 0;
  std::array<uint8_t, kKeyDigestBytes> key_digest = {};
  Salt key_salt = {};
  uint32_t key_iterations = 0;
  std::string uuid;
  std::array<KeySlot, kSlotCount> slots;
  bool operator==(const Header&) const = default;

  // Of the key that encrypts the data.
  size_t key_bytes() const { return spec.key_bytes(); }
  // What one slot's key material occupies.
  uint32_t material_sectors() const;
  size_t active_slots() const;
};

// True if `head`, 8 bytes or more of a file, begins as a header of version 1
// does.
bool looks_like_luks(absl::Span<const uint8_t> head);

// `bytes` are the first kHeaderBytes of an area of `area_bytes`.
// Errors: kInvalidArgument if it is no LUKS header; kUnimplemented for a
// version, a cipher, a mode or a hash that Spindle does not have; kDataLoss for
// the rest.
absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> bytes,
                                    uint64_t area_bytes);

std::array<uint8_t, kHeaderBytes> serialise_header(const Header& header);
// The bytes of one slot, for kSlotsOffset + number * kSlotBytes.
std::array<uint8_t, kSlotBytes> serialise_slot(const KeySlot& slot);

// Sets where the slots and the data begin in a new header, as QEMU does.
void place_slots(Header* header);

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_HEADER_H_

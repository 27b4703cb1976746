// Numbers of the LUKS on-disk format, version 1 (specification 1.2.3, sections
// 2.1 to 2.3).  All are big-endian; a sector has 512 bytes.
#ifndef SPINDLE_FORMATS_LUKS_LAYOUT_H_
#define SPINDLE_FORMATS_LUKS_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace spindle::luks {

inline constexpr uint8_t kMagic[6] = {'L', 'U', 'K', 'S', 0xba, 0xbe};
inline constexpr uint16_t kVersion1 = 1;

inline constexpr size_t kSlotCount = 8;
inline constexpr size_t kSaltBytes = 32;
inline constexpr size_t kKeyDigestBytes = 20;
inline constexpr size_t kNameBytes = 32;  // with a zero at the end
inline constexpr size_t kUuidBytes = 40;  // likewise

// Offsets in the header.
inline constexpr size_t kVersionOffset = 6;
inline constexpr size_t kCipherNameOffset = 8;
inline constexpr size_t kCipherModeOffset = 40;
inline constexpr size_t kHashOffset = 72;
inline constexpr size_t kPayloadOffset = 104;
inline constexpr size_t kKeyLengthOffset = 108;
inline constexpr size_t kKeyDigestOffset = 112;
inline constexpr size_t kKeySaltOffset = 132;
inline constexpr size_t kKeyIterationsOffset = 164;
inline constexpr size_t kUuidOffset = 168;
inline constexpr size_t kSlotsOffset = 208;

// Offsets in a slot.
inline constexpr size_t kSlotStateOffset = 0;
inline constexpr size_t kSlotIterationsOffset = 4;
inline constexpr size_t kSlotSaltOffset = 8;
inline constexpr size_t kSlotMaterialOffset = 40;
inline constexpr size_t kSlotStripesOffset = 44;
inline constexpr size_t kSlotBytes = 48;

inline constexpr size_t kHeaderBytes = kSlotsOffset + kSlotCount * kSlotBytes;
static_assert(kHeaderBytes == 592);
inline constexpr uint32_t kHeaderSectors = 2;  // what it lies in

inline constexpr uint32_t kSlotActive = 0x00ac71f3;
inline constexpr uint32_t kSlotInactive = 0x0000dead;
inline constexpr uint32_t kStripes = 4000;

// Fewer are never written.
inline constexpr uint32_t kMinIterations = 1000;
// More are neither written nor carried out: a limit of Spindle's, minutes of
// work on a processor of today.
inline constexpr uint32_t kMaxIterations = uint32_t{1} << 29;

// New headers: slots, and the payload, begin at multiples of this.
inline constexpr uint32_t kAlignmentBytes = 4096;

}  // namespace spindle::luks

#endif  // SPINDLE_FORMATS_LUKS_LAYOUT_H_

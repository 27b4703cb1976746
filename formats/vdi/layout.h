// Where things stand in a VirtualBox disk image (VDI), version 1.1.
//
// All numbers are little-endian.  A header of one sector; then the block map,
// one 32-bit entry for each block of the disk; then the blocks, in the order in
// which they were first written.  There is no specification but VirtualBox's
// own source (VDICore.h); the names in brackets are those of its fields.
#ifndef SPINDLE_FORMATS_VDI_LAYOUT_H_
#define SPINDLE_FORMATS_VDI_LAYOUT_H_

#include <cstddef>
#include <cstdint>

#include "engine/sector.h"

namespace spindle::vdi {

// ---- The header -------------------------------------------------------------

inline constexpr size_t kHeaderBytes = kSectorSizeBytes;

inline constexpr size_t kTextOffset = 0x00;           // 64 bytes for people
inline constexpr size_t kSignatureOffset = 0x40;      // [u32Signature]
inline constexpr size_t kVersionOffset = 0x44;        // [u32Version]
inline constexpr size_t kHeaderSizeOffset = 0x48;     // [cbHeader]
inline constexpr size_t kImageTypeOffset = 0x4c;      // [u32Type]
inline constexpr size_t kMapOffsetOffset = 0x154;     // [offBlocks]
inline constexpr size_t kDataOffsetOffset = 0x158;    // [offData]
inline constexpr size_t kSectorSizeOffset = 0x168;    // [cbSector]
inline constexpr size_t kDiskSizeOffset = 0x170;      // [cbDisk], 8 bytes
inline constexpr size_t kBlockSizeOffset = 0x178;     // [cbBlock]
inline constexpr size_t kBlockExtraOffset = 0x17c;    // [cbBlockExtra]
inline constexpr size_t kBlockCountOffset = 0x180;    // [cBlocks]
inline constexpr size_t kAllocatedOffset = 0x184;     // [cBlocksAllocated]
inline constexpr size_t kImageUuidOffset = 0x188;     // [uuidCreate]
inline constexpr size_t kSnapshotUuidOffset = 0x198;  // [uuidModify]
inline constexpr size_t kLinkUuidOffset = 0x1a8;      // [uuidLinkage]
inline constexpr size_t kParentUuidOffset = 0x1b8;    // [uuidParentModify]
inline constexpr size_t kUuidBytes = 16;

inline constexpr char kText[] = "<<< QEMU VM Virtual Disk Image >>>\n";
inline constexpr uint32_t kSignature = 0xbeda107f;
inline constexpr uint32_t kVersion = 0x00010001;
// Counted from kHeaderSizeOffset; longer ones have fields that nobody needs.
inline constexpr uint32_t kMinHeaderSize = 0x180;

enum ImageType : uint32_t { kDynamic = 1, kStatic = 2 };

// ---- The block map ----------------------------------------------------------

inline constexpr size_t kMapEntryBytes = 4;
// An entry is the index of a block of the file, or one of these.  Both read as
// zeroes.
inline constexpr uint32_t kFree = 0xffffffff;
inline constexpr uint32_t kZeroed = 0xfffffffe;

constexpr bool is_stored(uint32_t entry) { return entry < kZeroed; }

// ---- Limits -----------------------------------------------------------------

// The only size of a block that QEMU reads.
inline constexpr uint32_t kBlockBytes = uint32_t{1} << 20;
// Those of QEMU: the block map takes less than 2 GiB.
inline constexpr uint32_t kMaxBlockCount =
    ((uint32_t{1} << 31) - kSectorSizeBytes) / kMapEntryBytes;
inline constexpr uint64_t kMaxDiskBytes =
    uint64_t{kMaxBlockCount} * kBlockBytes;

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_LAYOUT_H_

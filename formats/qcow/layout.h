// The qcow format, version 1, on disk: offsets, bit masks and limits.
//
// Sections named here are those of "The QCOW Image Format, version 1" by Mark
// McLoughlin.  Where it is silent, QEMU's behaviour is the specification.  All
// numbers in a qcow image are big-endian.
//
// Thread safety: constants.
#ifndef SPINDLE_FORMATS_QCOW_LAYOUT_H_
#define SPINDLE_FORMATS_QCOW_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <limits>

namespace spindle::qcow {

// ---- Section "Header": where each field stands ------------------------------

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr uint32_t kVersion = 1;

inline constexpr size_t kMagicOffset = 0;
inline constexpr size_t kVersionOffset = 4;
inline constexpr size_t kBackingFileOffsetOffset = 8;
inline constexpr size_t kBackingFileSizeOffset = 16;
inline constexpr size_t kModificationTimeOffset = 20;  // of the backing file
inline constexpr size_t kSizeOffset = 24;
inline constexpr size_t kClusterBitsOffset = 32;  // one byte
inline constexpr size_t kL2BitsOffset = 33;       // one byte
inline constexpr size_t kPaddingOffset = 34;      // two bytes, ignored
inline constexpr size_t kCryptMethodOffset = 36;
inline constexpr size_t kL1TableOffsetOffset = 40;
inline constexpr size_t kHeaderBytes = 48;

inline constexpr uint32_t kCryptNone = 0;
inline constexpr uint32_t kCryptAes = 1;

// ---- Section "L2 Tables" ----------------------------------------------------

inline constexpr size_t kL2EntryBytes = 8;
inline constexpr uint64_t kL2Compressed = uint64_t{1} << 63;
// Of a compressed cluster the upper bits below that flag are the number of
// bytes that its data have: as many bits as the cluster size has.  The rest is
// where they begin, by the byte.
inline constexpr uint32_t kCompressedBits = 63;

// ---- Limits -----------------------------------------------------------------
// QEMU's, so that neither implementation makes what the other refuses.

inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 16;
// L2 tables of 512 bytes to 64 KiB.
inline constexpr uint32_t kMinL2Bits = 6;
inline constexpr uint32_t kMaxL2Bits = 13;
inline constexpr uint64_t kMinSizeBytes = 2;
inline constexpr uint64_t kMaxL1Entries =
    std::numeric_limits<int32_t>::max() / sizeof(uint64_t);
inline constexpr uint32_t kMaxBackingFilenameBytes = 1023;
// A file's offsets have a sign.
inline constexpr uint64_t kMaxFileBytes = std::numeric_limits<int64_t>::max();

}  // namespace spindle::qcow

#endif  // SPINDLE_FORMATS_QCOW_LAYOUT_H_

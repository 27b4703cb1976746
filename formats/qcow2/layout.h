// The qcow2 format on disk: offsets, bit masks and limits.
//
// Sections named here are those of the qcow2 specification,
// docs/interop/qcow2.txt in QEMU's source tree.  All numbers in a qcow2 image
// are big-endian.
//
// Thread safety: constants.
#ifndef SPINDLE_FORMATS_QCOW2_LAYOUT_H_
#define SPINDLE_FORMATS_QCOW2_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace spindle::qcow2 {

// ---- Section "Header": where each field stands ------------------------------

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr uint32_t kVersion2 = 2;        // compat=0.10
inline constexpr uint32_t kVersion3 = 3;        // compat=1.1

inline constexpr size_t kMagicOffset = 0;
inline constexpr size_t kVersionOffset = 4;
inline constexpr size_t kBackingFileOffsetOffset = 8;
inline constexpr size_t kBackingFileSizeOffset = 16;
inline constexpr size_t kClusterBitsOffset = 20;
inline constexpr size_t kSizeOffset = 24;
inline constexpr size_t kCryptMethodOffset = 32;
inline constexpr size_t kL1SizeOffset = 36;
inline constexpr size_t kL1TableOffsetOffset = 40;
inline constexpr size_t kRefcountTableOffsetOffset = 48;
inline constexpr size_t kRefcountTableClustersOffset = 56;
inline constexpr size_t kSnapshotCountOffset = 60;
inline constexpr size_t kSnapshotsOffsetOffset = 64;
inline constexpr size_t kVersion2HeaderBytes = 72;

// Section "Header", fields of version 3 only.
inline constexpr size_t kIncompatibleFeaturesOffset = 72;
inline constexpr size_t kCompatibleFeaturesOffset = 80;
inline constexpr size_t kAutoclearFeaturesOffset = 88;
inline constexpr size_t kRefcountOrderOffset = 96;
inline constexpr size_t kHeaderLengthOffset = 100;
inline constexpr size_t kVersion3MinHeaderBytes = 104;

// Section "Additional fields (version 3 and higher)".
inline constexpr size_t kCompressionTypeOffset = 104;
// What QEMU 5.1 and later write: the compression type and seven bytes padding.
inline constexpr size_t kVersion3HeaderBytes = 112;

// ---- Section "Header": values -----------------------------------------------

inline constexpr uint32_t kCryptNone = 0;
inline constexpr uint32_t kCryptAes = 1;
inline constexpr uint32_t kCryptLuks = 2;

inline constexpr uint8_t kCompressionZlib = 0;
inline constexpr uint8_t kCompressionZstd = 1;

// incompatible_features
inline constexpr uint64_t kIncompatibleDirty = uint64_t{1} << 0;
inline constexpr uint64_t kIncompatibleCorrupt = uint64_t{1} << 1;
inline constexpr uint64_t kIncompatibleDataFile = uint64_t{1} << 2;
inline constexpr uint64_t kIncompatibleCompressionType = uint64_t{1} << 3;
inline constexpr uint64_t kIncompatibleExtendedL2 = uint64_t{1} << 4;
inline constexpr uint64_t kIncompatibleKnown =
    kIncompatibleDirty | kIncompatibleCorrupt | kIncompatibleDataFile |
    kIncompatibleCompressionType | kIncompatibleExtendedL2;

// compatible_features
inline constexpr uint64_t kCompatibleLazyRefcounts = uint64_t{1} << 0;

// autoclear_features
inline constexpr uint64_t kAutoclearBitmaps = uint64_t{1} << 0;
inline constexpr uint64_t kAutoclearDataFileRaw = uint64_t{1} << 1;
// What a writer here maintains.
inline constexpr uint64_t kAutoclearKnown =
    kAutoclearBitmaps | kAutoclearDataFileRaw;

// ---- Section "Header extensions" --------------------------------------------

inline constexpr uint32_t kExtensionEnd = 0x00000000;
inline constexpr uint32_t kExtensionBackingFormat = 0xe2792aca;
inline constexpr uint32_t kExtensionFeatureNames = 0x6803f857;
inline constexpr uint32_t kExtensionBitmaps = 0x23852875;
inline constexpr uint32_t kExtensionEncryption = 0x0537be77;
inline constexpr uint32_t kExtensionDataFile = 0x44415441;
inline constexpr size_t kExtensionHeaderBytes = 8;  // type, length
inline constexpr size_t kExtensionAlignment = 8;

// Section "Full disk encryption header pointer".
inline constexpr size_t kEncryptionOffsetOffset = 0;
inline constexpr size_t kEncryptionLengthOffset = 8;
inline constexpr size_t kEncryptionExtensionBytes = 16;

// Section "Feature name table": type, bit number, name padded with zeroes.
inline constexpr size_t kFeatureNameEntryBytes = 48;
inline constexpr size_t kFeatureNameBytes = 46;
inline constexpr uint8_t kFeatureTypeIncompatible = 0;
inline constexpr uint8_t kFeatureTypeCompatible = 1;
inline constexpr uint8_t kFeatureTypeAutoclear = 2;

// ---- Section "Host cluster management" --------------------------------------

inline constexpr size_t kRefcountTableEntryBytes = 8;
inline constexpr uint64_t kRefcountTableOffsetMask =
    ~uint64_t{0x1ff};                                    // bits 9-63
inline constexpr uint32_t kRefcountOrderOfVersion2 = 4;  // 16 bits

// ---- Section "Cluster mapping" ----------------------------------------------

inline constexpr size_t kL1EntryBytes = 8;
inline constexpr uint64_t kL1OffsetMask = 0x00fffffffffffe00;  // bits 9-55
inline constexpr uint64_t kEntryCopied = uint64_t{1} << 63;
inline constexpr uint64_t kL1ReservedMask = ~(kL1OffsetMask | kEntryCopied);

inline constexpr size_t kL2EntryBytes = 8;
inline constexpr size_t kExtendedL2EntryBytes = 16;
inline constexpr uint64_t kL2Compressed = uint64_t{1} << 62;
// Section "Extended L2 Entries": the bitmap of a cluster's subclusters, which
// follows the descriptor.  Bit x says that subcluster x is allocated, bit
// 32 + x that it reads as zeroes; never both.
inline constexpr uint32_t kSubclustersPerCluster = 32;
inline constexpr uint64_t kBitmapAllAllocated = 0x00000000ffffffff;
inline constexpr uint64_t kBitmapAllZero = 0xffffffff00000000;
// Section "Standard Cluster Descriptor".
inline constexpr uint64_t kL2ZeroFlag = uint64_t{1} << 0;      // version 3 only
inline constexpr uint64_t kL2OffsetMask = 0x00fffffffffffe00;  // bits 9-55
inline constexpr uint64_t kL2StandardReservedMask =
    ~(kL2OffsetMask | kEntryCopied | kL2Compressed | kL2ZeroFlag);
// Section "Compressed Clusters Descriptor": with x = 62 - (cluster_bits - 8),
// bits 0 to x-1 are the host offset in bytes, bits x to 61 the number of
// additional 512-byte sectors.
inline constexpr uint32_t kCompressedOffsetBitsBase = 62;
inline constexpr uint32_t kCompressedClusterBitsBase = 8;
inline constexpr uint64_t kCompressedSectorBytes = 512;

// ---- Section "Snapshots": where each field of a table entry stands ----------

inline constexpr size_t kSnapshotL1OffsetOffset = 0;
inline constexpr size_t kSnapshotL1SizeOffset = 8;
inline constexpr size_t kSnapshotIdSizeOffset = 12;
inline constexpr size_t kSnapshotNameSizeOffset = 14;
inline constexpr size_t kSnapshotDateSecondsOffset = 16;
inline constexpr size_t kSnapshotDateNanosecondsOffset = 20;
inline constexpr size_t kSnapshotVmClockOffset = 24;
inline constexpr size_t kSnapshotVmStateSizeOffset = 32;
inline constexpr size_t kSnapshotExtraSizeOffset = 36;
// Extra data, then id and name, then padding.
inline constexpr size_t kSnapshotExtraOffset = 40;
inline constexpr size_t kSnapshotAlignment = 8;
// Within the extra data.
inline constexpr size_t kSnapshotExtraVmStateSizeOffset = 0;
inline constexpr size_t kSnapshotExtraDiskSizeOffset = 8;
inline constexpr size_t kSnapshotExtraIcountOffset = 16;
// What version 3 demands, and what is known here.
inline constexpr uint32_t kSnapshotExtraVersion3Bytes = 16;
inline constexpr uint32_t kSnapshotExtraKnownBytes = 24;
// "Not recorded".
inline constexpr uint64_t kSnapshotNoIcount = ~uint64_t{0};

// ---- Section "Bitmaps" ------------------------------------------------------

// The header extension.
inline constexpr size_t kBitmapsCountOffset = 0;
inline constexpr size_t kBitmapsReservedOffset = 4;
inline constexpr size_t kBitmapsDirectorySizeOffset = 8;
inline constexpr size_t kBitmapsDirectoryOffsetOffset = 16;
inline constexpr size_t kBitmapsExtensionBytes = 24;
// A directory entry.
inline constexpr size_t kBitmapTableOffsetOffset = 0;
inline constexpr size_t kBitmapTableSizeOffset = 8;
inline constexpr size_t kBitmapFlagsOffset = 12;
inline constexpr size_t kBitmapTypeOffset = 16;
inline constexpr size_t kBitmapGranularityBitsOffset = 17;
inline constexpr size_t kBitmapNameSizeOffset = 18;
inline constexpr size_t kBitmapExtraSizeOffset = 20;
// Extra data, then the name, then padding.
inline constexpr size_t kBitmapEntryBytes = 24;
inline constexpr size_t kBitmapEntryAlignment = 8;
// Its flags.
inline constexpr uint32_t kBitmapInUse = uint32_t{1} << 0;
inline constexpr uint32_t kBitmapAuto = uint32_t{1} << 1;
inline constexpr uint32_t kBitmapExtraDataCompatible = uint32_t{1} << 2;
inline constexpr uint32_t kBitmapKnownFlags =
    kBitmapInUse | kBitmapAuto | kBitmapExtraDataCompatible;
inline constexpr uint8_t kBitmapTypeDirtyTracking = 1;
// A bitmap table's entry.
inline constexpr size_t kBitmapTableEntryBytes = 8;
inline constexpr uint64_t kBitmapTableOffsetMask = 0x00fffffffffffe00;
inline constexpr uint64_t kBitmapTableReservedMask = 0xff000000000001fe;
inline constexpr uint64_t kBitmapTableAllOnes = uint64_t{1} << 0;

// ---- Limits -----------------------------------------------------------------
// The specification bounds cluster_bits below (section "Header") and
// refcount_order above; the other limits are QEMU's, so that neither
// implementation makes what the other refuses.

inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 21;
inline constexpr uint32_t kMaxRefcountOrder = 6;
// 32 subclusters of at least 512 bytes, section "Extended L2 Entries".
inline constexpr uint32_t kMinExtendedL2ClusterBits = 14;
// The fixed part of a snapshot table entry, section "Snapshots".
inline constexpr uint64_t kMinSnapshotEntryBytes = 40;
inline constexpr uint64_t kMaxL1TableBytes = uint64_t{32} << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = uint64_t{8} << 20;
inline constexpr uint32_t kMaxSnapshotCount = 65536;
inline constexpr uint64_t kMaxSnapshotTableBytes =
    uint64_t{1024} * kMaxSnapshotCount;
inline constexpr uint32_t kMaxSnapshotExtraBytes = 1024;
// With extra data beyond that limit, which a repair leaves out.
inline constexpr uint64_t kMaxUncutSnapshotTableBytes = INT32_MAX;
inline constexpr uint32_t kMaxBitmapCount = 65535;
inline constexpr uint64_t kMaxBitmapDirectoryBytes =
    uint64_t{1024} * kMaxBitmapCount;
inline constexpr uint64_t kMaxBitmapTableEntries = 0x8000000;
// The bits of one bitmap.
inline constexpr uint64_t kMaxBitmapBytes = uint64_t{512} << 20;
inline constexpr uint32_t kMinBitmapGranularityBits = 9;
inline constexpr uint32_t kMaxBitmapGranularityBits = 31;
// Of all bitmaps of an image that is opened for writing; a limit of Spindle's.
inline constexpr uint64_t kMaxBitmapsBytes = uint64_t{64} << 30;
inline constexpr uint32_t kMaxBitmapNameBytes = 1023;
inline constexpr uint32_t kMaxBackingFilenameBytes = 1023;
inline constexpr uint32_t kMaxBackingFormatBytes = 15;
// What a file name can have.
inline constexpr uint32_t kMaxDataFilenameBytes = 4095;
// Host offsets have 56 bits, section "Cluster mapping".
inline constexpr uint64_t kMaxHostOffset = (uint64_t{1} << 56) - 1;
// Guest sizes fit a signed 64-bit file offset.
inline constexpr uint64_t kMaxSizeBytes = (uint64_t{1} << 63) - 1;
// QEMU reads and writes nothing beyond this in any file.
inline constexpr uint64_t kMaxFileBytes =
    (uint64_t{1} << 63) - (uint64_t{1} << 30);

}  // namespace spindle::qcow2

#endif  // SPINDLE_FORMATS_QCOW2_LAYOUT_H_

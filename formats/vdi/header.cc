#include "formats/vdi/header.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "engine/byte_order.h"
#include "engine/checked_math.h"
#include "engine/errors.h"

namespace spindle::vdi {
namespace {

// Both in QEMU's words.
std::string unsupported_size(uint64_t disk_bytes) {
  return absl::StrFormat(
      "Unsupported VDI image size (size is %#x, max supported is %#x)",
      disk_bytes, kMaxDiskBytes);
}

std::string unsupported(const std::string& what) {
  return absl::StrFormat("unsupported VDI image (%s)", what);
}

absl::Status check_identity(absl::Span<const uint8_t> sector) {
  if (sector.size() < kHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("vdi: the file has %d bytes; a header has %d",
                        sector.size(), kHeaderBytes));
  }
  // QEMU looks at the size before anything else.
  const uint64_t disk_bytes = load_little64(&sector[kDiskSizeOffset]);
  const bool is_too_large = disk_bytes > kMaxDiskBytes;
  const uint32_t signature = load_little32(&sector[kSignatureOffset]);
  if (signature != kSignature) {
    return with_qemu_words(
        absl::InvalidArgumentError(absl::StrFormat(
            "vdi: the signature is %#010x, not %#010x: not a VDI image",
            signature, kSignature)),
        is_too_large
            ? unsupported_size(disk_bytes)
            : absl::StrFormat("Image not in VDI format (bad signature %08x)",
                              signature));
  }
  if (is_too_large) {
    return with_qemu_words(absl::DataLossError(absl::StrFormat(
                               "vdi: the disk size is %d bytes; the limit is "
                               "%d",
                               disk_bytes, kMaxDiskBytes)),
                           unsupported_size(disk_bytes));
  }
  const uint32_t version = load_little32(&sector[kVersionOffset]);
  if (version != kVersion) {
    return with_qemu_words(
        absl::UnimplementedError(
            absl::StrFormat("vdi: the version is %d.%d; 1.1 is supported",
                            version >> 16, version & 0xffff)),
        unsupported(
            absl::StrFormat("version %d.%d", version >> 16, version & 0xffff)));
  }
  return absl::OkStatus();
}

// What other images may have, and neither we nor QEMU can do.
absl::Status check_features(absl::Span<const uint8_t> sector) {
  struct Expected {
    const char* name;
    size_t offset;
    uint32_t value;
  };
  constexpr Expected kExpected[] = {
      {"sector size", kSectorSizeOffset, kSectorSizeBytes},
      {"block size", kBlockSizeOffset, kBlockBytes},
      {"block extra size", kBlockExtraOffset, 0},
  };
  for (const Expected& expected : kExpected) {
    const uint32_t value = load_little32(&sector[expected.offset]);
    if (value == expected.value) continue;
    return with_qemu_words(
        absl::UnimplementedError(
            absl::StrFormat("vdi: the %s is %d; %d is supported", expected.name,
                            value, expected.value)),
        unsupported(absl::StrFormat("%s %u is not %u", expected.name, value,
                                    expected.value)));
  }
  const uint32_t type = load_little32(&sector[kImageTypeOffset]);
  if (type != kDynamic && type != kStatic) {
    return absl::UnimplementedError(absl::StrFormat(
        "vdi: the image type is %d; 1 (dynamic) and 2 (static) are supported",
        type));
  }
  const auto has_uuid = [&](size_t offset) {
    const auto uuid = sector.subspan(offset, kUuidBytes);
    return std::any_of(uuid.begin(), uuid.end(),
                       [](uint8_t byte) { return byte != 0; });
  };
  const char* const set = has_uuid(kLinkUuidOffset)     ? "link"
                          : has_uuid(kParentUuidOffset) ? "parent"
                                                        : nullptr;
  if (set == nullptr) return absl::OkStatus();
  return with_qemu_words(
      absl::UnimplementedError(absl::StrFormat(
          "vdi: the %s UUID is set; images that lie over another one are not "
          "supported",
          set)),
      unsupported(absl::StrFormat("non-NULL %s UUID", set)));
}

// Where the block map and the blocks lie.
absl::Status check_places(const Header& header, uint64_t file_bytes) {
  const auto unaligned = [](const char* name, const char* short_name,
                            uint32_t offset) {
    return with_qemu_words(
        absl::DataLossError(
            absl::StrFormat("vdi: the %s is at offset %#x, not a multiple of "
                            "%d",
                            name, offset, kSectorSizeBytes)),
        unsupported(
            absl::StrFormat("unaligned %s offset %#x", short_name, offset)));
  };
  if (!is_sector_aligned(header.map_offset))
    return unaligned("block map", "block map", header.map_offset);
  if (!is_sector_aligned(header.data_offset))
    return unaligned("first block", "data", header.data_offset);
  if (header.map_offset < kHeaderBytes) {
    return absl::DataLossError(
        absl::StrFormat("vdi: the block map is at offset %#x, within the "
                        "header, which has %d bytes",
                        header.map_offset, kHeaderBytes));
  }
  const uint64_t map_end = header.map_offset + header.map_bytes();
  if (header.data_offset < map_end) {
    return absl::DataLossError(absl::StrFormat(
        "vdi: the first block is at offset %#x, before the end of the block "
        "map at %#x",
        header.data_offset, map_end));
  }
  if (map_end > file_bytes) {
    return absl::DataLossError(absl::StrFormat(
        "vdi: the block map ends at offset %#x, beyond the end of the file at "
        "%#x",
        map_end, file_bytes));
  }
  return absl::OkStatus();
}

// The disk and its blocks.
absl::Status check_size(const Header& header) {
  if (header.block_count > kMaxBlockCount) {
    return with_qemu_words(
        absl::DataLossError(
            absl::StrFormat("vdi: the number of blocks is %d; the limit is %d",
                            header.block_count, kMaxBlockCount)),
        unsupported(absl::StrFormat("too many blocks %u, max is %u",
                                    header.block_count, kMaxBlockCount)));
  }
  const uint64_t room = uint64_t{header.block_count} * kBlockBytes;
  if (header.disk_bytes > room) {
    const std::string words =
        header.disk_bytes > kMaxDiskBytes
            ? unsupported_size(header.disk_bytes)
            : unsupported(
                  absl::StrFormat("disk size %u, image bitmap has room for %u",
                                  header.disk_bytes, room));
    return with_qemu_words(
        absl::DataLossError(absl::StrFormat(
            "vdi: the disk size is %d bytes; the block map has room for %d",
            header.disk_bytes, room)),
        words);
  }
  return absl::OkStatus();
}

// A random UUID (version 4), as Microsoft and VirtualBox store it: its first
// three fields are little-endian.
void store_new_uuid(uint8_t* to) {
  std::random_device random;
  for (size_t i = 0; i < kUuidBytes; i += sizeof(uint32_t))
    store_little32(to + i, random());
  to[7] = static_cast<uint8_t>((to[7] & 0x0f) | 0x40);
  to[8] = static_cast<uint8_t>((to[8] & 0x3f) | 0x80);
}

}  // namespace

bool looks_like_vdi(absl::Span<const uint8_t> head) {
  return head.size() >= kHeaderBytes &&
         load_little32(&head[kSignatureOffset]) == kSignature;
}

absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> sector,
                                    uint64_t file_bytes) {
  absl::Status status = check_identity(sector);
  if (!status.ok()) return status;
  const auto field = [&](size_t offset) {
    return load_little32(&sector[offset]);
  };
  if (field(kHeaderSizeOffset) < kMinHeaderSize) {
    return absl::DataLossError(
        absl::StrFormat("vdi: the header size is %d; the least is %d",
                        field(kHeaderSizeOffset), kMinHeaderSize));
  }
  if (status = check_features(sector); !status.ok()) return status;

  Header header;
  header.type = static_cast<ImageType>(field(kImageTypeOffset));
  header.map_offset = field(kMapOffsetOffset);
  header.data_offset = field(kDataOffsetOffset);
  header.block_count = field(kBlockCountOffset);
  header.allocated_count = field(kAllocatedOffset);
  header.disk_bytes =
      align_up(load_little64(&sector[kDiskSizeOffset]), kSectorSizeBytes);
  if (status = check_size(header); !status.ok()) return status;
  if (status = check_places(header, file_bytes); !status.ok()) return status;
  return header;
}

std::array<uint8_t, kHeaderBytes> new_header(const Header& header) {
  std::array<uint8_t, kHeaderBytes> sector{};
  std::memcpy(&sector[kTextOffset], kText, sizeof(kText));
  store_little32(&sector[kSignatureOffset], kSignature);
  store_little32(&sector[kVersionOffset], kVersion);
  store_little32(&sector[kHeaderSizeOffset], kMinHeaderSize);
  store_little32(&sector[kImageTypeOffset], header.type);
  store_little32(&sector[kMapOffsetOffset], header.map_offset);
  store_little32(&sector[kDataOffsetOffset], header.data_offset);
  store_little32(&sector[kSectorSizeOffset], kSectorSizeBytes);
  store_little64(&sector[kDiskSizeOffset], header.disk_bytes);
  store_little32(&sector[kBlockSizeOffset], kBlockBytes);
  store_little32(&sector[kBlockCountOffset], header.block_count);
  store_little32(&sector[kAllocatedOffset], header.allocated_count);
  store_new_uuid(&sector[kImageUuidOffset]);
  store_new_uuid(&sector[kSnapshotUuidOffset]);
  return sector;
}

}  // namespace spindle::vdi

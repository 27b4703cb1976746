#include "formats/qcow/used_sectors.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/checked_math.h"

namespace spindle::qcow {
namespace {

constexpr uint64_t kSectorsPerByte = 4;
constexpr uint32_t kBitsPerSector = 2;
constexpr uint8_t kWhole = 1;
constexpr uint8_t kPart = 2;

}  // namespace

absl::StatusOr<UsedSectors> UsedSectors::create(uint64_t sector_count) {
  Bytes bytes(static_cast<uint8_t*>(
      std::calloc(sector_count / kSectorsPerByte + 1, 1)));
  if (bytes == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory to check a file of ", sector_count, " sectors"));
  }
  return UsedSectors(std::move(bytes));
}

bool UsedSectors::add_sector(uint64_t sector, bool is_whole) {
  uint8_t& byte = bytes_.get()[sector / kSectorsPerByte];
  const auto shift =
      static_cast<uint32_t>(sector % kSectorsPerByte) * kBitsPerSector;
  const auto before = static_cast<uint8_t>(byte >> shift);
  byte |= static_cast<uint8_t>((is_whole ? kWhole : kPart) << shift);
  return (before & (is_whole ? kWhole | kPart : kWhole)) == 0;
}

bool UsedSectors::add(ByteRange range) {
  bool was_free = true;
  const uint64_t last = (range.end() - 1) / kSectorSizeBytes;
  for (uint64_t sector = range.offset / kSectorSizeBytes; sector <= last;
       ++sector) {
    const ByteRange whole{sector * kSectorSizeBytes, kSectorSizeBytes};
    was_free &= add_sector(sector, range.contains(whole));
  }
  return was_free;
}

}  // namespace spindle::qcow

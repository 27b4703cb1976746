// The header of a VDI image: parsed, checked, and made for a new image.
//
// Thread safety: pure functions and values; no I/O.
#ifndef SPINDLE_FORMATS_VDI_HEADER_H_
#define SPINDLE_FORMATS_VDI_HEADER_H_

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "formats/vdi/layout.h"

namespace spindle::vdi {

struct Header {
  ImageType type = kDynamic;
  uint32_t map_offset = 0;   // in the file, in bytes
  uint32_t data_offset = 0;  // in the file, in bytes
  uint64_t disk_bytes = 0;
  uint32_t block_count = 0;
  // How many blocks the file has, it says.  The block map knows better.
  uint32_t allocated_count = 0;

  uint64_t map_bytes() const { return uint64_t{block_count} * kMapEntryBytes; }
};

// True if `head`, the first bytes of a file, begins an image.
bool looks_like_vdi(absl::Span<const uint8_t> head);

// `sector`: the first sector of a file of `file_bytes` bytes.  A disk of an odd
// length (VirtualBox makes them) becomes one of whole sectors.
// Errors name the field, its value and the limit: kInvalidArgument if it is no
// VDI image, kUnimplemented for a version or feature that QEMU does not have
// either, kDataLoss for what makes no sense.
absl::StatusOr<Header> parse_header(absl::Span<const uint8_t> sector,
                                    uint64_t file_bytes);

// The first sector of a new image, with new random UUIDs.
std::array<uint8_t, kHeaderBytes> new_header(const Header& header);

}  // namespace spindle::vdi

#endif  // SPINDLE_FORMATS_VDI_HEADER_H_
